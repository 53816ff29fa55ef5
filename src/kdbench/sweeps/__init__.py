"""Many runs: what there is to do, what it costs, and where it trains."""
