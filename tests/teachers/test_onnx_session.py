"""A session answers in float32 whatever the graph's types, on the device asked for or not at all.

Memory is bound on the CPU here as it is on a GPU: what differs there is the device's name.
"""

import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import stillroom.teachers.onnx_session as onnx_session
from stillroom.errors import UserError
from stillroom.teachers.configs import OnnxTeacher
from stillroom.teachers.onnx_cuda import CUDA_PROVIDER, why_not_loaded
from stillroom.teachers.onnx_file import load_graph
from stillroom.teachers.onnx_graph import cut
from stillroom.teachers.onnx_session import OnnxSession

CPU = torch.device("cpu")
FLOAT, HALF, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
# of the whole network, and of its output
TYPES = [
    (FLOAT, FLOAT),
    (FLOAT, HALF),
    (FLOAT, DOUBLE),
    (FLOAT, TensorProto.INT64),
    (FLOAT, TensorProto.INT32),
    (FLOAT, TensorProto.INT8),
    (FLOAT, TensorProto.UINT8),
    (FLOAT, TensorProto.BOOL),
    (HALF, HALF),
    (HALF, FLOAT),
]

GPU_TYPES = [t for t in TYPES if t[1] in (FLOAT, HALF, DOUBLE, TensorProto.INT64)]


def name_of(value: object) -> str:
    return TensorProto.DataType.Name(value) if isinstance(value, int) else ""


def pictures(b=3, h=32, w=32, seed=0):
    return torch.rand((b, 3, h, w), generator=torch.Generator().manual_seed(seed))


def teacher(path, **fields) -> OnnxTeacher:
    return OnnxTeacher(target="person", kind="logits", path=str(path), **fields)


@pytest.mark.parametrize(("element", "output"), TYPES, ids=name_of)
def test_bound_memory_and_arrays_give_float32_of_what_plain_onnxruntime_gives(
    tmp_path, make_onnx, plain, element, output
):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", classes=3, element=element, output=output)
    session = OnnxSession(cut(load_graph(path), ["small", "output"]), CPU)
    for image in (pictures(2), pictures(2, 64, 32), pictures(2, seed=1)):
        given = image.numpy().astype(helper.tensor_dtype_to_np_dtype(element))
        for found in (session.run(image), session._run_bound(image)):
            assert list(found) == ["small", "output"]
            for name, answer in found.items():
                wanted = plain(path, given, name).astype(np.float32)
                assert answer.dtype == torch.float32
                np.testing.assert_array_equal(answer, wanted)


@pytest.mark.parametrize("batch", [1, "N"])
def test_a_network_in_half_precision_is_a_teacher_like_any_other(tmp_path, make_onnx, batch):
    size = {"batch": batch, "size": (32, 32)} if batch == 1 else {}
    half = make_onnx.save_segmenter(tmp_path / "half.onnx", classes=3, element=HALF, **size)
    full = make_onnx.save_segmenter(tmp_path / "full.onnx", classes=3)
    built, image = teacher(half).build("cpu"), pictures(3)
    assert built.damage == () and built.batch is None
    found, wanted = built(image)["person"], teacher(full).build("cpu")(image)["person"]
    assert found.dtype == torch.float32
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert 0 < error < 2e-3  # rounded to 11 bits at each of five tensors


def test_what_has_no_type_of_torch_is_refused_by_name(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", output=TensorProto.STRING)
    with pytest.raises(UserError, match=r"tensor output(.|\n)*tensor\(string\)"):
        OnnxSession(load_graph(path), CPU)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="has a CUDA device: nothing to fall back from"
)
def test_a_session_that_fell_back_to_the_cpu_is_an_error_with_the_loaders_reason(
    tmp_path, make_onnx, capfd
):
    model = load_graph(make_onnx.save_segmenter(tmp_path / "a.onnx"))
    with pytest.raises(UserError, match="cuda:0") as caught:
        OnnxSession(model, torch.device("cuda", 0))
    reason = why_not_loaded()
    assert reason and f"found:  {reason}" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_threads_are_limited_by_the_environment(tmp_path, make_onnx, monkeypatch):
    model = load_graph(make_onnx.save_segmenter(tmp_path / "a.onnx"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    session = OnnxSession(model, CPU)
    assert session._session.get_session_options().intra_op_num_threads == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    session = OnnxSession(model, CPU)
    assert session._session.get_session_options().intra_op_num_threads == 0


def test_threads_that_wait_for_the_next_batch_take_no_core(tmp_path, make_onnx, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    session = OnnxSession(load_graph(make_onnx.save_segmenter(tmp_path / "a.onnx")), CPU)
    options = session._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    image, spent = torch.rand(4, 3, 64, 64), 0.0
    for _ in range(10):
        session.run(image)
        began = time.process_time()
        time.sleep(0.02)
        spent += time.process_time() - began
    assert spent < 0.05  # of .2 s; threads that spin take .11


@pytest.mark.gpu
@pytest.mark.parametrize(("element", "output"), GPU_TYPES, ids=name_of)
def test_on_a_gpu_the_answer_is_that_of_the_cpu_and_stays_there(
    tmp_path, make_onnx, element, output
):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", classes=4, element=element, output=output)
    cpu, gpu = teacher(path).build("cpu"), teacher(path).build("cuda")
    assert gpu.provider == CUDA_PROVIDER
    tolerance = 1e-2 if HALF in (element, output) else 1e-5  # of the largest value
    for rows in (4, 3, 9):  # the second is padded and cut
        image = pictures(rows, seed=rows)
        found = gpu(image.cuda())["person"]
        assert found.is_cuda and found.dtype == torch.float32
        wanted = cpu(image)["person"]
        if output == TensorProto.INT64:  # what is next to a whole number may become either
            assert float((found.cpu() != wanted).double().mean()) < 1e-3
        else:
            largest = float(wanted.abs().max())
            torch.testing.assert_close(found.cpu(), wanted, atol=tolerance * largest, rtol=0)


@pytest.mark.gpu
def test_on_a_gpu_tensors_are_bound_by_the_types_that_the_graph_declares(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx", element=HALF, output=DOUBLE)
    model = cut(load_graph(path), ["small", "output"])
    cpu, gpu = OnnxSession(model, CPU), OnnxSession(model, torch.device("cuda", 0))
    for rows in (1, 5):
        found, wanted = gpu.run(pictures(rows).cuda()), cpu.run(pictures(rows))
        for name in ("small", "output"):
            atol = 1e-2 * float(wanted[name].abs().max())
            torch.testing.assert_close(found[name].cpu(), wanted[name], atol=atol, rtol=0)


@pytest.mark.gpu
def test_on_a_gpu_work_of_torch_that_is_under_way_is_waited_for(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    cpu, gpu = teacher(path).build("cpu"), teacher(path).build("cuda")
    busy = torch.rand(4096, 4096, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            busy = busy @ busy / 4096
        image = pictures().cuda() + busy[0, 0] * 0
        found = gpu(image)["person"]
    torch.testing.assert_close(found.cpu(), cpu(pictures())["person"], atol=1e-4, rtol=1e-4)


def wide_sum(path):
    """3 -> 64 -> 64 channels; white gives 576 * 0.75 * (1 + 2**-12) wherever nothing is padded.

    TF32 has 10 bits behind the point: it takes 1 + 2**-12 for 1.
    """
    weights = {
        "spread": np.full((64, 3, 1, 1), 0.25, np.float32),
        "sum": np.full((64, 64, 3, 3), 1 + 2**-12, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "spread"], ["inner"]),
        helper.make_node("Conv", ["inner", "sum"], ["output"]),
    ]
    image, output = (
        helper.make_tensor_value_info(name, FLOAT, ["n", c, "h", "w"])
        for name, c in (("image", 3), ("output", 64))
    )
    graph = helper.make_graph(
        nodes,
        "wide",
        [image],
        [output],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))


def error_of_wide_sum(path, device: torch.device) -> float:
    wide_sum(path)
    found = OnnxSession(load_graph(path), device).run(torch.ones(2, 3, 64, 64, device=device))
    wanted = 576 * 0.75 * (1 + 2**-12)
    return float((found["output"].double() / wanted - 1).abs().max())


def test_a_wide_sum_is_exact_enough_to_see_tf32(tmp_path):
    assert error_of_wide_sum(tmp_path / "a.onnx", CPU) < 2**-18


@pytest.mark.gpu
def test_on_a_gpu_tf32_is_off(tmp_path, monkeypatch):
    device = torch.device("cuda", 0)
    assert error_of_wide_sum(tmp_path / "a.onnx", device) < 2**-18
    options = onnx_session.cuda_options
    monkeypatch.setattr(onnx_session, "cuda_options", lambda n: {**options(n), "use_tf32": 1})
    if error_of_wide_sum(tmp_path / "a.onnx", device) < 2**-14:
        pytest.skip("this device and cuDNN use no TF32 here when they may")
