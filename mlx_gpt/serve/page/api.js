// Requests to the server, and the texts that it streams.

import { $ } from "./dom.js";

const LOST =
  "The connection to the server was lost. The text so far is kept. Check that mlxgpt serve is still running, then continue from here.";

// A JSON number beyond 2^53 would be rounded. A seed is therefore a string of digits on this page.
export const toJson = ({ seed, ...rest }) =>
  seed === undefined ? JSON.stringify(rest) : `${JSON.stringify(rest).slice(0, -1)},"seed":${seed}}`;

// The quotes of a text are escaped in JSON, so this can match only the field of the response.
const seedIn = (json) => json.match(/,"seed":(-?\d+)/)?.[1];

export async function ask(path, options = {}) {
  const key = $("key").value;
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { headers, ...options }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The server can't be reached. Check that mlxgpt serve is still running, then try again.");
  });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  if (answer.status === 401) {
    $("key-label").hidden = false;
    throw new Error(key ? "The API key is wrong; enter another one above." : "This server requires an API key; enter it above.");
  }
  throw new Error(body?.error?.message ?? `The server responded with status ${answer.status}.`);
}

// Yields the JSON of each event of a stream, until the event [DONE].
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error(LOST);
    });
    if (done) throw new Error(LOST);
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      if (part.startsWith("data: ")) yield part.slice(6);
    }
  }
}

// The next two functions add the text of a frame to the result, and return its tokens as {text, name, logprob, top:
// [[name, logprob], ...]}. `text` has the characters that the token completes. `name` is the token alone: a part of a
// character is "bytes:\xf0\x9f". `top` has the most likely tokens in descending order.
function completionTokens(choice, result) {
  result.text += choice.text;
  result.characters.push(...choice.text); // text_offset counts Unicode code points, a string's indices UTF-16 units
  const { tokens, text_offset, token_logprobs, top_logprobs } = choice.logprobs;
  return tokens.map((name, i) => ({
    name,
    text: result.characters.slice(text_offset[i], text_offset[i + 1]).join(""),
    logprob: token_logprobs[i],
    top: Object.entries(top_logprobs[i]).sort(([, a], [, b]) => b - a), // an object has the names of digits first
  }));
}

function chatTokens(choice, result) {
  result.text += choice.delta.content ?? "";
  return (choice.logprobs?.content ?? []).map((token) => ({
    name: token.token,
    text: result.decoder.decode(new Uint8Array(token.bytes), { stream: true }),
    logprob: token.logprob,
    top: token.top_logprobs.map(({ token, logprob }) => [token, logprob]),
  }));
}

const KINDS = {
  completion: { path: "/v1/completions", read: completionTokens, more: { stream: true, logprobs: 5 } },
  chat: { path: "/v1/chat/completions", read: chatTokens, more: { stream: true, logprobs: true, top_logprobs: 5 } },
};
export const pathOf = (request) => KINDS[request.kind].path;

// Generates the text of a request, {kind, body}. Calls onTokens(tokens, result) for each part. Returns the result:
// {text, tokens, seed, seconds, error}. `error` is null if the text is complete or was stopped.
export async function generate(request, signal, onTokens) {
  const { path, read, more } = KINDS[request.kind];
  const result = { text: "", tokens: [], seed: null, seconds: 0, error: null, characters: [], decoder: new TextDecoder() };
  let first = null; // time of the first token
  try {
    const answer = await ask(path, { method: "POST", body: toJson({ ...request.body, ...more }), signal });
    for await (const json of events(answer)) {
      const frame = JSON.parse(json);
      if (frame.error) throw new Error(frame.error.message);
      result.seed ??= seedIn(json);
      const tokens = frame.choices.length ? read(frame.choices[0], result) : [];
      if (!tokens.length) continue;
      first ??= performance.now();
      result.seconds = (performance.now() - first) / 1000;
      result.tokens.push(...tokens);
      onTokens(tokens, result);
    }
  } catch (error) {
    if (error.name !== "AbortError") result.error = error.message;
  }
  return result;
}
