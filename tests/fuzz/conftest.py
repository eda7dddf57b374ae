"""How long the fuzz tests run: some seconds in the fast tier, the same ones every time; minutes with `--all`."""

from hypothesis import HealthCheck, settings

# Each example writes its own file into the test's folder.
_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("fast", max_examples=60, derandomize=True, **_COMMON)
settings.register_profile("all", max_examples=5000, **_COMMON)


def pytest_configure(config):
    settings.load_profile("all" if config.getoption("--all") else "fast")
