"""A server that handles one request at a time. load.py compares `mlxgpt serve` with this server.

    python experiments/serve/plain.py CHECKPOINT PORT

It samples with the defaults of mlx_gpt.generate, temperature 0.8 and top_p 0.9, which are those that load.py requests.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import mlx_gpt


def main(checkpoint: str, port: str) -> None:
    run = mlx_gpt.load(checkpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            pieces = mlx_gpt.generate(run, asked["prompt"], max_tokens=asked["max_tokens"], seed=asked["seed"])
            count = 0  # of pieces, which are single tokens if the tokenizer is one of characters
            for text in pieces:
                count += 1
                self._send({"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}]})
            self._send({"choices": [], "usage": {"completion_tokens": count}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _send(self, frame):
            self.wfile.write(f"data: {json.dumps(frame)}\n\n".encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", int(port)), Handler) as server:
        server.request_queue_size = 128
        list(mlx_gpt.generate(run, "", max_tokens=4))  # compiles
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
