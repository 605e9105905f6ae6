"""Property tests: the same examples in every run, and no clock, so that a busy machine changes nothing."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "pack", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("pack")
