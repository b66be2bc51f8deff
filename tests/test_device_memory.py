"""Memory that runs out is told from every other error, and the size that is named was tried."""

import gc
import weakref

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from stillroom.device_memory import is_out_of_memory, largest_that_fits, smaller_micro_batches
from stillroom.errors import FailureError

# As these libraries say it on a GPU; what a CPU can be made to say is asked of the libraries below.
ON_A_GPU = [
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
    "CUDA error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node."
    " Status Message: bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t,"
    " bool) Failed to allocate memory for requested buffer of size 8388608000",
    "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
    "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cudnnCreate(&cudnn_handle_);",
]
NO_MEMORY = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
    FailureError("the device ran out of memory"),  # said already
    KeyError("size"),
]


def outer_sum(arena: bool) -> None:
    """Let onnxruntime make 2**48 values of 2**24."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 1]), ("y", ["n", "m"]))
    )
    model = helper.make_model(
        helper.make_graph(nodes, "outer", [x], [y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_cpu_mem_arena = 4, arena
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(None, {"x": np.ones((2**24, 1), np.float32)})


@pytest.mark.parametrize(
    "fill",
    [
        lambda: torch.empty(2**50),
        lambda: np.empty(2**50),
        lambda: outer_sum(arena=True),
        lambda: outer_sum(arena=False),
    ],
    ids=["torch", "numpy", "onnxruntime with its arena", "onnxruntime without"],
)
def test_what_libraries_say_when_memory_runs_out_is_understood(fill):
    with pytest.raises(Exception) as caught:
        fill()
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("text", ON_A_GPU)
def test_what_they_say_on_a_gpu_is_understood(text):
    assert is_out_of_memory(RuntimeError(text)) and is_out_of_memory(Exception(text))


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_another_error_is_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_smaller_micro_batches_cut_the_batch_evenly():
    assert smaller_micro_batches(24, 24) == [12, 8, 6, 4, 3, 2, 1]
    assert smaller_micro_batches(24, 7) == [6, 4, 3, 2, 1]
    assert smaller_micro_batches(24, 12, world=2) == [6, 4, 3, 2, 1]
    assert smaller_micro_batches(12, 6, world=4) == [3, 1]
    assert smaller_micro_batches(1, 1) == []


def attempt_up_to(limit: int, tried: list[int]):
    def attempt(size: int) -> None:
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


def test_sizes_are_tried_from_the_largest_until_one_fits():
    tried: list[int] = []
    assert largest_that_fits([12, 8, 6, 4], attempt_up_to(7, tried)) == 6
    assert tried == [12, 8, 6]


def test_where_none_fits_none_is_named():
    tried: list[int] = []
    assert largest_that_fits([2, 1], attempt_up_to(0, tried)) is None
    assert tried == [2, 1]
    assert largest_that_fits([], attempt_up_to(9, tried)) is None


def test_another_error_of_an_attempt_is_raised():
    def broken(size: int) -> None:
        raise ValueError(size)

    with pytest.raises(ValueError, match="2"):
        largest_that_fits([2, 1], broken)


def test_the_memory_of_one_attempt_is_free_before_the_next():
    alive: list[weakref.ref] = []
    was_enabled = gc.isenabled()
    gc.disable()  # only what is freed on purpose counts

    def attempt(size: int) -> None:
        assert all(ref() is None for ref in alive)
        held = torch.zeros(size)
        cycle = [held]
        cycle.append(cycle)  # as a network with its hooks is
        alive.append(weakref.ref(held))
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    try:
        assert largest_that_fits([4, 2, 1], attempt) == 1
    finally:
        if was_enabled:
            gc.enable()
    assert len(alive) == 3


@pytest.mark.gpu
def test_on_a_gpu_a_size_that_fits_is_found_after_one_that_does_not():
    total = torch.cuda.get_device_properties(0).total_memory

    def attempt(size: int) -> None:
        torch.empty(size * (total // 8), dtype=torch.uint8, device="cuda")

    found = largest_that_fits([16, 8, 4, 2, 1], attempt)
    assert found is not None and found < 8
