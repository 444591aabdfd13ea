"""Where to look next: one file a sampler, each `build(space, goals, seed, *, settings)` giving an Optuna sampler."""
