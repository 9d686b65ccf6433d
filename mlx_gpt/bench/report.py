"""The benchmark's results as lines of text and as a bar chart."""

from pathlib import Path

# Preset -> milliseconds per update that randyGPT's authors published for 64 x 256 tokens, on a Mac of unknown model.
PUBLISHED = {"model-l": 1835, "model-m": 1370, "model-s": 592}


def machine_line(machine: dict) -> str:
    """Describes the machine in one line. `machine` is the result of machine.machine()."""
    parts = [machine["chip"] or machine["name"]]
    if machine["backend"] != "cpu":
        parts.append(f"{machine['name']} ({machine['backend']})")
    parts += [f"{machine['cores']} cores", machine["os"], f"MLX {machine['mlx']}"]
    if machine["backend"] == "cpu":
        parts += [f"BLAS {machine['blas']}", f"{'vectorized' if machine['vectorised_kernels'] else 'stock'} kernels"]
    parts += [
        f"{name.replace('_', ' ')} {machine[name]}"
        for name in ("power_source", "low_power_mode", "thermal")
        if name in machine
    ]
    return ", ".join(parts)


def lines(name: str, result: dict) -> list[str]:
    """Returns the lines of the report on one preset. `result` is that of record.measure()."""
    config, training, ours = result["config"], result["training"], result["training"]["mlxgpt"]
    rows, block_size = ours["rows"], config["model"]["block_size"]
    rate = result["matmul_gflops"]
    out = [
        f"{name}: {result['parameters']:,} parameters, {rows} x {block_size} tokens, {config['train']['dtype']}, "
        f"dropout {config['model']['dropout']:g}; matrix product {rate:,.0f} GFLOP/s",
        "",
        f"{'training':<16}{'ms/iter':>10} {'quartiles':>17} {'tokens/s':>10} {'TFLOP/s':>9} {'of matmul':>10}"
        f" {'resident':>9} {'speed-up':>11}",
    ]
    for contender, facts in training.items():
        label = contender if facts["rows"] == rows else f"{contender} x{facts['rows']}"
        low, high = facts["quartiles_ms"]
        ratio = ours["tokens_per_second"] / facts["tokens_per_second"]
        out.append(
            f"{label:<16}{facts['ms_per_iter']:>10,.1f} {f'{low:,.0f} to {high:,.0f}':>17} "
            f"{facts['tokens_per_second']:>10,.0f} {facts['gflops'] / 1000:>9.3f} {facts['gflops'] / rate:>10.0%} "
            f"{facts['peak_resident_bytes'] / 1e9:>6.2f} GB {f'{ratio:.2f} x':>11}"
        )
    if any(facts["rows"] != rows for facts in training.values()):
        out.append("(xN: measured with N sequences; compare tokens/s)")
    if name in PUBLISHED and (rows, block_size) == (64, 256):
        out.append(f"{'randyGPT':<16}{PUBLISHED[name]:>10,.1f} {'published, on another machine':>30}")
    moved = result["bytes_per_step"]
    out += [
        "",
        "parts of a step  " + "  ".join(f"{part} {ms:,.1f} ms" for part, ms in result["parts"].items()),
        f"                 (attention is part of forward and backward); about {moved / 1e9:.1f} GB moved per step, "
        f"{moved / ours['ms_per_iter'] / 1e6:,.1f} GB/s; peak of MLX's arrays {ours['peak_device_bytes'] / 1e9:.2f} GB",
    ]
    columns = ["prefill 1", "prefill 16", "decode 1", "decode 16", "recompute"]
    out += ["", f"{'tokens/s':<16}" + "".join(f"{c:>12}" for c in columns)]
    for contender, rates in result["writing"].items():
        out.append(f"{contender:<16}" + "".join(f"{rates[c]:>12,.0f}" if c in rates else f"{'':>12}" for c in columns))
    return out


def text_line(text: dict) -> str:
    """Describes the time and memory of byte-pair encoding in one line. `text` is the result of text.measure()."""
    return (
        f"text             {text['bytes'] / 1e6:.1f} MB: a vocabulary of {text['vocab_size']:,} trained in "
        f"{text['train_seconds']} s, {text['tokens']:,} tokens encoded in {text['encode_seconds']} s; resident "
        f"{text['peak_resident_bytes'] / 1e9:.2f} GB"
    )


def draw(path: Path, results: dict[str, dict], machine: dict) -> None:
    """Draws training tokens per second as bars, one panel per preset, into an image file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(1 + 4.5 * len(results), 3.2), squeeze=False)
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        training = result["training"]
        rates = [facts["tokens_per_second"] for facts in training.values()]
        bars = axis.barh(list(training), rates, color=["#d1495b" if c == "mlxgpt" else "#8d99ae" for c in training])
        axis.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3)
        axis.invert_yaxis()
        axis.set_title(name, loc="left")
        axis.set_xlabel("training tokens/s")
        axis.set_xlim(0, 1.2 * max(rates))
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{machine['chip'] or machine['name']}, {machine['backend']}, MLX {machine['mlx']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
