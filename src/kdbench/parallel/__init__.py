"""The processes that train one cohort together."""
