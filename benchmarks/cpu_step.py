"""What the options of XLA (runtime/compilation.py) and huge pages (main.py) make of a training step on a CPU.

python -m benchmarks.cpu_step --output=docs/results

Each round runs every case in a process of its own, on all cores: JAX as it is, with this package's options, with huge
pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`), and with both, as main.py runs. Linux with glibc; three minutes on two
cores.
"""

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import report

CONFIGS = {"digits_hold": ((8, 8, 1), 128), "cifar10_small_hold": ((32, 32, 3), 16)}  # shape, batch size
PAGES = {"small": {}, "huge": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
ROUNDS, STEPS, WARM = 2, 20, 3


def steps(config: str, own_options: bool) -> dict[str, float]:
    """Median seconds, processor seconds and page faults of a step, and the bytes of its temporaries."""
    import importlib

    import jax

    from benchmarks.train_step import Ours
    from hold_jax.runtime import compilation

    if not own_options:
        compilation.options = lambda platform: None
    shape, batch_size = CONFIGS[config]
    ours = Ours(importlib.import_module(f"configs.{config}").get_config(), shape, batch_size, "float32")
    step = ours.program.step.lower(*ours.abstract()).compile()
    state, found = ours.program.start(), []
    for _ in range(WARM + STEPS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.monotonic(), time.process_time()
        state, _ = jax.block_until_ready(step(state, ours.batch))
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        found.append((time.monotonic() - began[0], time.process_time() - began[1], faults))
    seconds, processor, faults = (statistics.median(column) for column in zip(*found[WARM:], strict=True))
    temporary = step.memory_analysis().temp_size_in_bytes
    return {"seconds": seconds, "processor": processor, "page_faults": faults, "temporary_bytes": temporary}


def apart(config: str, own_options: bool, pages: str, cache: str) -> dict[str, Any]:
    """`steps` in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= PAGES[pages] | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    code = f"import json; from benchmarks import cpu_step as c; print(json.dumps(c.steps({config!r}, {own_options})))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return {"config": config, "own_options": own_options, "pages": pages} | json.loads(done.stdout)


def main() -> None:
    """Prints a table of the least medians and writes JSON."""
    args = report.parser(__doc__).parse_args()
    cases = list(itertools.product(CONFIGS, (False, True), PAGES))
    with tempfile.TemporaryDirectory() as cache:
        rows = [apart(*case, cache) for _ in range(ROUNDS) for case in cases]
    for case in cases:
        same = [row for row in rows if (row["config"], row["own_options"], row["pages"]) == case]
        seconds, processor = (1e3 * min(row[name] for row in same) for name in ("seconds", "processor"))
        options = "own options" if case[1] else "JAX as it is"
        print(f"{case[0]:<20}{options:<14}{case[2]:<6} pages {seconds:6.0f} ms, {processor:6.0f} ms of processor time")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    args.seconds = spent.ru_utime + spent.ru_stime
    report.finish(args, "cpu_step", rows, f"{len(rows)} processes, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
