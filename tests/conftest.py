"""Settings of all tests."""

import os

from hypothesis import HealthCheck, settings

# How long a machine takes to draw an example is not what a test is about.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in every run, so that a change is judged by what it changes; elsewhere new ones are drawn.
settings.register_profile("ci", settings.get_profile("patient"), derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "patient"))
