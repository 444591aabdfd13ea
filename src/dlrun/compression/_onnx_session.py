"""A graph on ONNX Runtime, on the processor: opened one way for what is compressed and for what is exported."""

from __future__ import annotations

from typing import Any

import torch


def session(graph: bytes | str) -> Any:
    """An inference session of a file's bytes or path, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about its own optimizations
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
