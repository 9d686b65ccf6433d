"""Measures byte-pair encoding: training a vocabulary on a text, and encoding that text.

`python -m mlx_gpt.bench.text CHARACTERS` prints the result as JSON. The benchmark runs it as a process of its own, so
that peak memory is that of this work alone.
"""

import json
import subprocess
import sys
import time

from mlx_gpt.bench.worker import peak_resident
from mlx_gpt.data.bpe import BPETokenizer
from mlx_gpt.data.corpus import open_corpus

FULL, QUICK = 7_600_000, 500_000  # characters; FULL is the largest text for which randyGPT's authors published times
VOCAB_SIZE = 2000


def measure(size: int) -> dict:
    """Trains a vocabulary on the first `size` characters of the corpus `stdlib`, and encodes the same characters.

    Returns:
        The size of the text in bytes and in tokens, the size of the vocabulary, the seconds of training and of
        encoding, and the peak resident memory of this process in bytes.
    """
    text = "\n".join(open_corpus(["stdlib"]).documents)[:size]
    start = time.perf_counter()
    tokenizer = BPETokenizer.train([text], VOCAB_SIZE, set(text))
    trained = time.perf_counter()
    ids = tokenizer.encode(text)
    return {
        "bytes": len(text.encode()),
        "vocab_size": VOCAB_SIZE,
        "train_seconds": round(trained - start, 2),
        "encode_seconds": round(time.perf_counter() - trained, 2),
        "tokens": len(ids),
        "peak_resident_bytes": peak_resident(),
    }


def measure_apart(size: int) -> dict:
    """Runs measure() in a new process and returns its result.

    Raises:
        subprocess.CalledProcessError: The process failed.
    """
    done = subprocess.run([sys.executable, "-m", "mlx_gpt.bench.text", str(size)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]))))
