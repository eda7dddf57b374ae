"""What it saves that main.py lets glibc keep freed memory: training steps of configs/digits_hold.py.

python -m benchmarks.freed_memory --output=docs/results

Each round runs every case in a process of its own on one core: the C library as it is, with huge pages
(`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`), and as main.py sets it. Linux with glibc; a minute of processor time.
"""

import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import main as program
from benchmarks import report

CASES = {"as it is": {}, "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, "kept": {}}
ROUNDS, STEPS = 2, 20


def steps(case: str) -> dict[str, float]:
    """Median processor seconds and page faults of a step, and the bytes of its temporaries."""
    if case == "kept":
        program._keep_freed_memory()
    import jax  # after the C library is set

    from benchmarks.train_step import Ours
    from configs import digits_hold

    config = digits_hold.get_config()
    ours = Ours(config, (8, 8, 1), config.training.batch_size, "float32")
    step = ours.program.step.lower(*ours.abstract()).compile()
    state, seconds, faults = ours.program.start(), [], []
    for _ in range(STEPS):
        began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        state, _ = jax.block_until_ready(step(state, ours.batch))
        seconds.append(time.process_time() - began)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    found = {"seconds": statistics.median(seconds), "page_faults": statistics.median(faults)}
    return found | {"temporary_bytes": step.memory_analysis().temp_size_in_bytes}


def apart(case: str, cache: str) -> dict[str, Any]:
    """`steps` in a process of its own, pinned to one core."""
    environment = os.environ | CASES[case] | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    pinned = functools.partial(os.sched_setaffinity, 0, {min(os.sched_getaffinity(0))})
    words = [
        sys.executable,
        "-c",
        f"import json; from benchmarks import freed_memory as f; print(json.dumps(f.steps({case!r})))",
    ]
    done = subprocess.run(words, env=environment, preexec_fn=pinned, capture_output=True, text=True, check=True)
    return {"case": case} | json.loads(done.stdout)


def main() -> None:
    """Prints a line and writes JSON."""
    args = report.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as cache:
        rows = [apart(case, cache) for _ in range(ROUNDS) for case in CASES]
    least = {case: min(row["seconds"] for row in rows if row["case"] == case) for case in CASES}
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    args.seconds = spent.ru_utime + spent.ru_stime
    sentence = "; ".join(f"{case}: {1e3 * seconds:.0f} ms" for case, seconds in least.items())
    report.finish(args, "freed_memory", rows, f"processor time of a step, {sentence}")


if __name__ == "__main__":
    main()
