// The surprisal of a whole text as a strip of bars: one bar for each token, or for each pixel the most surprising one.

import { bitsOf, meanBits, MOST_BITS, visible } from "./tokens.js";

export class Strip {
  // `onChoose(span)` is called when the user points at the bar of a token.
  constructor(canvas, onChoose) {
    Object.assign(this, { canvas, spans: [], due: false });
    canvas.addEventListener("click", (event) => {
      const index = Math.floor((event.offsetX / canvas.clientWidth) * this.spans.length);
      if (this.spans[index]) onChoose(this.spans[index]);
    });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // Shows the tokens of these elements. Drawn once per frame, however often this is called.
  show(spans) {
    this.spans = spans;
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => ((this.due = false), this.draw()));
  }

  draw() {
    const { canvas, spans } = this, tokens = spans.map((span) => span.told);
    canvas.hidden = !tokens.length;
    if (canvas.hidden) return;
    const most = tokens.reduce((a, b) => (bitsOf(b) > bitsOf(a) ? b : a));
    canvas.setAttribute(
      "aria-label",
      `Surprisal of the ${tokens.length} tokens: ${meanBits(tokens).toFixed(2)} bits per token, at most ${bitsOf(most).toFixed(2)} at ${visible(most.name)}`,
    );
    const width = (canvas.width = Math.round(canvas.clientWidth * devicePixelRatio));
    const height = (canvas.height = Math.round(canvas.clientHeight * devicePixelRatio));
    const step = Math.max(width / tokens.length, 1), brush = canvas.getContext("2d");
    const bars = new Map(); // position in pixels -> bits
    tokens.forEach((token, i) => {
      const x = Math.floor((i * width) / tokens.length);
      bars.set(x, Math.max(bars.get(x) ?? 0, bitsOf(token)));
    });
    brush.fillStyle = getComputedStyle(canvas).color;
    for (const [x, bits] of bars) {
      const tall = Math.max(1, Math.min(bits / MOST_BITS, 1) * height);
      brush.fillRect(x, height - tall, step > 3 ? step - 1 : step, tall);
    }
  }
}
