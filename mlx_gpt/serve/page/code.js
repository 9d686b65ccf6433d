// A request as a command and as a program.

import { pathOf, toJson } from "./api.js";

// What the OpenAI client has no argument for.
const EXTRA = new Set(["top_k", "min_p", "repetition_penalty"]);

export function asCurl(request, key) {
  const quoted = `'${toJson(request.body).replaceAll("'", `'\\''`)}'`;
  const header = key ? ` -H "Authorization: Bearer $MLXGPT_API_KEY"` : "";
  return `curl ${location.origin}${pathOf(request)} -H 'Content-Type: application/json'${header} -d ${quoted}`;
}

// JSON of strings, numbers, lists and objects is Python too.
export function asPython({ kind, body }, key) {
  const values = Object.entries(body).map(([name, value]) => [name, name === "seed" ? value : JSON.stringify(value)]);
  const extra = values.filter(([name]) => EXTRA.has(name)).map(([name, value]) => `"${name}": ${value}`);
  const lines = values.filter(([name]) => !EXTRA.has(name)).map(([name, value]) => `    ${name}=${value},`);
  if (extra.length) lines.push(`    extra_body={${extra.join(", ")}},`);
  const [method, result] = kind === "chat" ? ["chat.completions", "message.content"] : ["completions", "text"];
  return [
    ...(key ? ["import os", ""] : []),
    "import openai",
    "",
    `client = openai.OpenAI(base_url="${location.origin}/v1", api_key=${key ? `os.environ["MLXGPT_API_KEY"]` : `"none"`})`,
    `response = client.${method}.create(`,
    ...lines,
    ")",
    `print(response.choices[0].${result})`,
    "",
  ].join("\n");
}
