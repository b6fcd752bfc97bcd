"""Settings of all tests."""

from hypothesis import HealthCheck, settings

# How long a machine takes to draw an example is not what a test is about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
