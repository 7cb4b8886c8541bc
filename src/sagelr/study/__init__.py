"""A comparison of arms: plan, queue, run, statistics → results.json."""
