"""The contenders "PyTorch" (eager) and "torch.compile": the same model and batch on a CPU, MPS or CUDA device.

Attention is F.scaled_dot_product_attention, and the optimizer is the fused AdamW.

Shapes: B batch, T time, C channels, V vocabulary.
"""

import contextlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mlx_gpt.bench.case import LEARNING_RATE, Case


class Block(nn.Module):
    """A transformer block.

    If a cache is given, the new keys and values are written into it from `position` on, and the queries attend to all
    positions up to the last new one.
    """

    def __init__(self, C: int, H: int, dropout: float):
        super().__init__()
        self.n_head, self.dropout = H, dropout
        self.attn = nn.ModuleDict({name: nn.Linear(C, C, bias=False) for name in ("wq", "wk", "wv", "wo")})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(C, 4 * C, bias=False), "fc2": nn.Linear(4 * C, C, bias=False)})

    def forward(self, x, cache=None, position=0):
        B, T, C = x.shape
        h = F.rms_norm(x, (C,), eps=1e-5)
        heads = (self.attn[name](h).view(B, T, self.n_head, -1).transpose(1, 2) for name in ("wq", "wk", "wv"))
        q, k, v = heads
        if cache is not None:
            for known, new in zip(cache, (k, v), strict=True):
                known[:, :, position : position + T] = new
            k, v = (known[:, :, : position + T] for known in cache)
        # A prompt starts at position 0, so the causal mask is square. A single token may attend to the whole cache.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1).transpose(1, 2).reshape(B, T, C)
        x = x + F.dropout(self.attn["wo"](y), self.dropout, self.training)
        h = F.relu(self.mlp["fc1"](F.rms_norm(x, (C,), eps=1e-5))).square()
        return x + F.dropout(self.mlp["fc2"](h), self.dropout, self.training)


class TorchGPT(nn.Module):
    """randyGPT's network. Its weights have the same names as in mlxgpt."""

    def __init__(self, case: Case):
        super().__init__()
        shape = case.config.model
        self.wte = nn.Embedding(case.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd)
        blocks = (Block(shape.n_embd, shape.n_head, shape.dropout) for _ in range(shape.n_layer))
        self.layers = nn.ModuleList(blocks)
        self.lm_head = nn.Linear(shape.n_embd, case.vocab_size, bias=False)

    def forward(self, tokens, targets=None, cache=None, position=0):
        """Returns the mean loss if targets are given, otherwise the logits of the last token (B, V)."""
        x = self.wte(tokens) + self.wpe.weight[position : position + tokens.shape[1]]
        for i, layer in enumerate(self.layers):
            x = layer(x, cache[i] if cache else None, position)
        if targets is None:
            return self.lm_head(x[:, -1])
        return F.cross_entropy(self.lm_head(x).flatten(0, 1).float(), targets.flatten())


class Contender:
    """A training loop as PyTorch code is usually written. With dtype bfloat16 it uses autocast on float32 weights."""

    def __init__(self, case: Case, compiled: bool):
        self.case, self.config, self.compiled = case, case.config, compiled
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.device = accelerator or torch.device("cpu")
        self.version = f"PyTorch {torch.__version__} on {self.device.type}"
        self.ids = torch.from_numpy(case.ids.astype(np.int64)).to(self.device)
        self._reset()

    def losses(self, rows: int) -> list[float]:
        """Returns the losses of the case's first `rows` sequences, before and after one update on them."""
        batch = (
            torch.from_numpy(a[:rows].astype(np.int64)).to(self.device) for a in (self.case.inputs, self.case.targets)
        )
        inputs, targets = batch
        found = [self._update(inputs, targets).item() for _ in range(2)]
        self._load()
        return found

    def steps(self, count: int) -> float:
        """Runs `count` updates and returns their time in seconds. No loss is read on the host between them."""
        rows, T = self.config.train.sequences_per_step, self.config.model.block_size
        span = torch.arange(T + 1, device=self.device)
        self._wait()
        start = time.perf_counter()
        for _ in range(count):
            starts = torch.randint(len(self.ids) - T, (rows, 1), device=self.device)
            windows = self.ids[starts + span]
            self._update(windows[:, :-1], windows[:, 1:])
        self._wait()
        return time.perf_counter() - start

    def device_peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def prefill(self, rows: int) -> float:
        """Returns the seconds of reading `rows` prompts that fill the context, after a call that is not timed."""
        tokens = torch.ones(rows, self.config.model.block_size, dtype=torch.long, device=self.device)
        with self._writing():
            cache = self._cache(rows)
            self.model(tokens, cache=cache)
            self._wait()
            start = time.perf_counter()
            self.model(tokens, cache=cache)
            self._wait()
        return time.perf_counter() - start

    def decode(self, rows: int) -> tuple[float, list[int]]:
        """Like decode() of ours.py: the seconds of greedy decoding, and the generated ids of the first sequence."""
        with self._writing():
            cache = self._cache(rows)
            read, written = self.case.prompt, self.case.written
            prompt = torch.ones(rows, read, dtype=torch.long, device=self.device)
            ids = self.model(prompt, cache=cache).argmax(-1)
            self._wait()
            start, text = time.perf_counter(), []
            for position in range(read, read + written):
                text.append(ids.tolist()[0])
                ids = self.model(ids[:, None], cache=cache, position=position).argmax(-1)
            self._wait()
        return time.perf_counter() - start, text

    def recompute(self, count: int) -> float:
        """Returns the seconds of generating `count` tokens without a cache. Each token reads the full context again."""
        window = torch.ones(1, self.config.model.block_size, dtype=torch.long, device=self.device)
        with self._writing():
            self.model(window)
            self._wait()
            start = time.perf_counter()
            for _ in range(count):
                following = self.model(window).argmax(-1)
                window = torch.cat([window[:, 1:], following[:, None]], dim=1)
                following.tolist()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def _writing(self):
        """A context for generation: evaluation mode, and no gradients."""
        self.model.eval()
        with torch.inference_mode():
            yield
        self.model.train()

    def _cache(self, rows: int):
        """Returns empty keys and values of each layer, (rows, n_head, block_size, head_dim) each."""
        shape = self.config.model
        size = (rows, shape.n_head, shape.block_size, shape.head_dim)
        return [[torch.zeros(size, device=self.device) for _ in range(2)] for _ in range(shape.n_layer)]

    def _reset(self) -> None:
        self.model = TorchGPT(self.case).to(self.device)
        self.forward = torch.compile(self.model) if self.compiled else self.model
        self._load()

    def _load(self) -> None:
        """Loads the initial weights and creates a new optimizer. A compiled model stays compiled."""
        optimizer = self.config.optimizer
        self.model.load_state_dict({name: torch.from_numpy(w) for name, w in self.case.weights.items()})
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=LEARNING_RATE,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )

    def _update(self, inputs, targets):
        """Makes one update. Returns the loss before it, as a tensor on the device."""
        dtype = self.config.train.dtype
        cast = torch.autocast(self.device.type, getattr(torch, dtype), enabled=dtype != "float32")
        with cast:
            loss = self.forward(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _wait(self) -> None:
        """Waits until the device has finished all submitted work, so that times include it."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
