"""External data is read from plain files beside the graph and from nowhere else."""

import hashlib
import subprocess
import sys

import numpy as np
import onnx
import pytest

from stillroom.errors import UserError
from stillroom.teachers.configs import MissingTeacherError, OnnxTeacher
from stillroom.teachers.onnx_file import embed, load_graph


@pytest.fixture
def external(tmp_path, make_onnx):
    """A network whose weights lie in `weights/w.bin` beside it."""
    model = onnx.load(str(make_onnx.save_segmenter(tmp_path / "inside.onnx")))
    folder = tmp_path / "net"
    (folder / "weights").mkdir(parents=True)
    onnx.save_model(
        model,
        str(folder / "a.onnx"),
        save_as_external_data=True,
        location="weights/w.bin",
        size_threshold=0,
    )
    return folder / "a.onnx"


def move(path, place):
    """Write another location into the graph."""
    model = onnx.load(str(path), load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())


def teacher(path):
    return OnnxTeacher(target="person", kind="logits", path=str(path))


def test_external_weights_are_the_same_weights(external, tmp_path):
    model = load_graph(external)
    embed(model, external.parent)
    inside = onnx.load(str(tmp_path / "inside.onnx"))
    assert len(model.graph.initializer) == 3
    for found, wanted in zip(model.graph.initializer, inside.graph.initializer, strict=True):
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(found), onnx.numpy_helper.to_array(wanted)
        )


def test_a_network_with_external_weights_runs(external, tmp_path):
    import torch

    image = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    found = teacher(external).build("cpu")(image)["person"]
    wanted = teacher(tmp_path / "inside.onnx").build("cpu")(image)["person"]
    assert torch.equal(found, wanted)


def test_the_identity_hashes_each_external_file(external):
    weights = external.parent / "weights" / "w.bin"
    identity = teacher(external).identity()
    assert identity["onnx_sha256"] == hashlib.sha256(external.read_bytes()).hexdigest()
    wanted = {"weights/w.bin": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert identity["external_data_sha256"] == wanted
    data = bytearray(weights.read_bytes())
    data[5] ^= 1
    weights.write_bytes(data)
    assert teacher(external).identity()["external_data_sha256"] != wanted


@pytest.mark.parametrize(
    "place", ["/etc/hostname", "../outside.bin", "weights/../../outside.bin", "C:\\w.bin", ""]
)
def test_a_place_outside_the_folder_is_refused(external, tmp_path, place):
    (tmp_path / "outside.bin").write_bytes((external.parent / "weights" / "w.bin").read_bytes())
    move(external, place)
    for act in (lambda: teacher(external).identity(), lambda: teacher(external).build("cpu")):
        with pytest.raises(UserError, match="refused"):
            act()


def test_external_data_that_is_not_there_is_missing(external):
    move(external, "no")
    for act in (teacher(external).identity, lambda: teacher(external).build("cpu")):
        with pytest.raises(MissingTeacherError, match="net/no, which holds weights"):
            act()


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_is_refused(external, linked):
    place = external.parent / "weights"
    if linked == "file":
        place = place / "w.bin"
    place.rename(external.parent / "moved")
    place.symlink_to(external.parent / "moved")
    for act in (teacher(external).identity, lambda: teacher(external).build("cpu")):
        with pytest.raises(UserError, match="a link"):
            act()


def test_external_weights_that_are_cut_short_are_refused(external):
    weights = external.parent / "weights" / "w.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="exceeds available data"):
        teacher(external).build("cpu")


def test_external_data_of_subgraphs_and_constants_is_seen(external):
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../outside.bin")
    constant = onnx.helper.make_node("Constant", [], ["t"], value=tensor)
    inner = onnx.helper.make_graph([constant], "inner", [], [])
    model = load_graph(external)
    model.graph.node.append(
        onnx.helper.make_node("If", ["yes"], [], then_branch=inner, else_branch=inner)
    )
    with pytest.raises(UserError, match=r"\.\."):
        embed(model, external.parent)
    external.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"\.\."):
        teacher(external).identity()


def test_weights_that_are_not_of_their_shape_are_refused(tmp_path, make_onnx):
    path = make_onnx.save_segmenter(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    onnx.save_model(model, str(path))
    with pytest.raises(UserError, match="weights stem_w are not of their shape 8x3x3x3"):
        teacher(path).build("cpu")


@pytest.mark.parametrize("content", [b"", b"no protobuf at all \xff\xff\xff", b"\x08\x07"])
def test_a_file_that_is_no_onnx_is_refused(tmp_path, content):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not an ONNX file"):
        load_graph(path)
    with pytest.raises(UserError, match="not an ONNX file"):
        teacher(path).identity()


def test_with_what_a_cache_recorded_the_same_identity_is_found_without_onnx(external):
    recorded = teacher(external).identity()
    code = (
        "import sys; from stillroom.teachers.configs import OnnxTeacher;"
        f"teacher = OnnxTeacher(target='t', kind='logits', path={str(external)!r});"
        f"print(teacher.identity(recorded=[{{}}, {recorded!r}])['external_data_sha256']);"
        "assert not {'onnx', 'onnxruntime'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(recorded["external_data_sha256"])


def test_recorded_external_data_is_compared_and_missed(external):
    recorded = teacher(external).identity()
    weights = external.parent / "weights" / "w.bin"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + b"?")
    assert teacher(external).identity(recorded=[recorded]) != recorded
    weights.unlink()
    with pytest.raises(MissingTeacherError, match=r"w\.bin"):
        teacher(external).identity(recorded=[recorded])
    stranger = recorded | {"external_data_sha256": {"../w.bin": ""}}
    with pytest.raises(UserError, match=r"\.\."):  # a cache may be anybody's
        teacher(external).identity(recorded=[stranger])


def test_a_network_that_no_cache_knows_has_an_identity_of_its_own(external):
    identity = teacher(external).identity(recorded=[{"onnx_sha256": "00"}])
    assert identity["external_data_sha256"] == {}
    assert identity["onnx_sha256"] == teacher(external).identity()["onnx_sha256"]
