"""How a trained model gets smaller: one file a method, each `build(spec, *, settings)` giving a Compressor."""
