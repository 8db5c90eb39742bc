from hypothesis import HealthCheck, settings

# The same examples in every run, and no deadline: a busy machine is not a failing test.
settings.register_profile(
    'mmattn', derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('mmattn')
