"""Keras files and SavedModels in; one module, so that TensorFlow is imported once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tf2onnx")
pytest.importorskip("tensorflow")

from converters.frontends import inspect, tf_bridge
from converters.frontends.base import Source, sniff

# isort: split
import keras
import onnxruntime as ort
import tensorflow as tf

from edge_sdk.errors import BackendError, ConversionError, UsageError


def read(path: Path, tmp_path: Path, **options) -> Source:
    work = tmp_path / f"work{len(list(tmp_path.iterdir()))}"
    work.mkdir()
    return Source.from_json(inspect(str(path), str(work), options))


def network(size=(24, 32), inputs=1, **more) -> keras.Model:
    keras.utils.set_random_seed(0)
    images = [keras.Input((*size, 3), name=f"image{k}") for k in range(inputs)]
    value = keras.layers.Conv2D(4, 3, activation="relu")(sum(images[1:], images[0]))
    value = keras.layers.GlobalAveragePooling2D()(value)
    return keras.Model(images, keras.layers.Dense(3, activation="softmax", name="answer", **more)(value))


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("vww_96.h5", (1, 96, 96, 3), 2),
        ("fer_mini_xception.hdf5", (1, 64, 64, 1), 7),
        ("mlperf_resnet8_cifar10.h5", (1, 32, 32, 3), 10),
    ],
)
def test_real_h5_files_become_onnx_with_the_same_answers(testdata, tmp_path, name, shape, classes):
    found = read(testdata / "models" / name, tmp_path)

    assert (found.format, found.input.shape, found.layout) == ("keras", shape, "NHWC")
    assert (found.decoder, found.classes) == ("softmax", classes)
    assert set(found.forms) == {"keras", "savedmodel", "onnx"}
    assert any(line.startswith("TensorFlow to ONNX: same answers") for line in found.because)
    # The depthwise layers of old files are those of today's Keras in the form `keras`: it loads without any help.
    assert keras.saving.load_model(found.forms["keras"], compile=False).count_params() > 1000


def test_every_form_of_a_keras_file_gives_the_answers_of_the_file(tmp_path):
    model = network()
    model.save(tmp_path / "m.keras")
    found = read(tmp_path / "m.keras", tmp_path)
    image = np.random.default_rng(0).normal(size=(1, 24, 32, 3)).astype(np.float32)
    want = np.asarray(model(image))

    assert sniff(tmp_path / "m.keras") == "keras"
    session = ort.InferenceSession(found.forms["onnx"])
    assert np.allclose(session.run(None, {found.input.name: image})[0], want, atol=1e-5)
    saved = tf.saved_model.load(found.forms["savedmodel"]).signatures["serving_default"]
    assert saved.structured_input_signature[1][found.input.name].shape == (1, 24, 32, 3)
    assert np.allclose(next(iter(saved(tf.constant(image)).values())), want, atol=1e-5)
    assert np.allclose(keras.saving.load_model(found.forms["keras"])(image), want, atol=1e-5)


def test_outputs_keep_the_order_of_the_model(tmp_path):
    image = keras.Input((16, 16, 3), name="image")
    value = keras.layers.Conv2D(4, 3)(image)
    pooled = keras.layers.GlobalAveragePooling2D()(value)
    outs = [keras.layers.Dense(5, name="zebra")(pooled), keras.layers.Dense(2, name="ant")(pooled)]
    keras.Model(image, outs).save(tmp_path / "m.keras")

    assert [o.shape for o in read(tmp_path / "m.keras", tmp_path).outputs] == [(1, 5), (1, 2)]


def test_an_open_size_is_asked_for(tmp_path):
    network(size=(None, None)).save(tmp_path / "m.keras")

    with pytest.raises(UsageError, match=r"dynamic shape \[None, None, None, 3\]|dynamic shape \[1, \?, \?, 3\]"):
        read(tmp_path / "m.keras", tmp_path)
    assert read(tmp_path / "m.keras", tmp_path, size=(40, 20)).input.shape == (1, 20, 40, 3)


def test_two_images_are_refused_and_listed(tmp_path):
    network(inputs=2).save(tmp_path / "m.keras")

    with pytest.raises(ConversionError, match=r"needs one image input .* image0 .* image1"):
        read(tmp_path / "m.keras", tmp_path)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_lambda_layer_is_refused_before_its_code_could_run(tmp_path, name):
    image = keras.Input((16, 16, 3))
    value = keras.layers.Lambda(lambda x: x / 255.0, name="scaling", output_shape=(16, 16, 3))(image)
    keras.Model(image, keras.layers.Flatten()(value)).save(tmp_path / name)

    with pytest.raises(ConversionError, match="has the Lambda layer `scaling`, whose Python code") as caught:
        read(tmp_path / name, tmp_path)
    assert "model.export" in (caught.value.hint or "")


@keras.saving.register_keras_serializable(package="mine")
class Doubled(keras.layers.Layer):
    def call(self, value):
        return value * 2


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_class_of_the_users_own_is_named_with_the_way_out(tmp_path, name):
    image = keras.Input((16, 16, 3))
    keras.Model(image, Doubled()(image)).save(tmp_path / name)
    known = dict(keras.saving.get_custom_objects())
    keras.saving.get_custom_objects().clear()
    try:
        with pytest.raises(BackendError, match=r"needs the class `[\w.>]*Doubled`, which is not in the file") as caught:
            read(tmp_path / name, tmp_path)
    finally:
        keras.saving.get_custom_objects().update(known)
    assert "SavedModel" in (caught.value.hint or "") or "model.export" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_files_cut_short_are_said_to_be_damaged(tmp_path, name):
    network().save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:3000])

    with pytest.raises(ConversionError, match=f"`{name}` cannot be read as a Keras model"):
        read(tmp_path / name, tmp_path)


def test_weights_alone_are_told_from_a_model(tmp_path):
    network().save_weights(tmp_path / "m.weights.h5")

    with pytest.raises(ConversionError, match=r"holds weights \(.*\) and no network"):
        read(tmp_path / "m.weights.h5", tmp_path)


def test_nan_weights_are_refused_and_the_weight_named(tmp_path):
    model = network()
    kernel, bias = model.layers[-1].get_weights()
    bias[1] = np.nan
    model.layers[-1].set_weights([kernel, bias])
    model.save(tmp_path / "m.keras")

    with pytest.raises(ConversionError, match="1 NaN values in the weight `answer/bias`"):
        read(tmp_path / "m.keras", tmp_path)


class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.scale = tf.Variable([1.0, 2.0, 3.0])
        self.mix = tf.Variable(tf.eye(3) * 2)

    @tf.function(input_signature=[tf.TensorSpec((None, 16, 12, 3), tf.float32, name="image")])
    def call(self, image):
        return {"scores": tf.nn.softmax(tf.matmul(tf.reduce_mean(image, (1, 2)), self.mix))}

    @tf.function(input_signature=[tf.TensorSpec((None, 16, 12, 3), tf.float32, name="image")])
    def sums(self, image):
        return {"sums": tf.reduce_sum(image, (1, 2)) * self.scale}

    @tf.function(input_signature=[tf.TensorSpec((), tf.string), tf.TensorSpec((None, 16, 12, 3), tf.float32)])
    def two(self, name, image):
        return {"y": image, "name": name}


def saved(path: Path, *signatures: str, default: str | None = None) -> Path:
    net = Net()
    chosen = {name: getattr(net, name) for name in signatures}
    if default is not None:
        chosen["serving_default"] = getattr(net, default)
    tf.saved_model.save(net, str(path), signatures=chosen)
    return path


def test_the_default_signature_of_a_savedmodel_is_taken(tmp_path):
    found = read(saved(tmp_path / "net", "sums", default="call"), tmp_path)

    assert sniff(tmp_path / "net") == "savedmodel"
    assert (found.input.shape, found.decoder, found.classes) == ((1, 16, 12, 3), "softmax", 3)
    assert found.outputs[0].name == "scores"
    assert set(found.forms) == {"savedmodel", "onnx"}


def test_the_only_signature_is_taken_and_of_several_one_is_asked_for(tmp_path):
    assert read(saved(tmp_path / "one", "sums"), tmp_path).outputs[0].name == "sums"
    with pytest.raises(UsageError, match="has the signatures") as caught:
        read(saved(tmp_path / "several", "sums", "call"), tmp_path)
    assert "--signature" in (caught.value.hint or "")
    assert read(tmp_path / "several", tmp_path, signature="call").outputs[0].name == "scores"
    with pytest.raises(UsageError, match="has no signature `other`"):
        read(tmp_path / "several", tmp_path, signature="other")


def test_a_savedmodel_without_a_signature_or_with_other_inputs_is_refused(tmp_path):
    net = tf.Module()
    net.scale = tf.Variable(1.0)
    tf.saved_model.save(net, str(tmp_path / "none"))

    with pytest.raises(ConversionError, match="`none` has no signature"):
        read(tmp_path / "none", tmp_path)
    with pytest.raises(ConversionError, match="needs one image input"):
        read(saved(tmp_path / "two", "two"), tmp_path)


def test_a_graph_that_writes_files_is_refused(tmp_path):
    net, trap = tf.Module(), tmp_path / "trap"

    def call(image):
        tf.io.write_file(str(trap), "x")
        return {"y": image}

    spec = tf.TensorSpec((1, 16, 12, 3), tf.float32, name="image")
    net.call = tf.function(call, input_signature=[spec])
    tf.saved_model.save(net, str(tmp_path / "net"), signatures={"serving_default": net.call})

    with pytest.raises(ConversionError, match="has the operation `WriteFile`"):
        read(tmp_path / "net", tmp_path)
    assert not trap.exists()


def test_a_savedmodel_that_lost_its_variables_or_its_end_is_refused(tmp_path):
    saved(tmp_path / "net", default="call")
    shutil.copytree(tmp_path / "net", tmp_path / "cut")
    (tmp_path / "cut/saved_model.pb").write_bytes((tmp_path / "cut/saved_model.pb").read_bytes()[:500])
    shutil.rmtree(tmp_path / "net/variables")

    for name in ("net", "cut"):
        with pytest.raises(ConversionError, match=f"`{name}` cannot be read as a SavedModel") as caught:
            read(tmp_path / name, tmp_path)
        assert "variables/" in (caught.value.hint or "")


def test_an_opset_that_the_exporter_does_not_write_is_refused(tmp_path):
    with pytest.raises((ConversionError, BackendError), match="opset|tf2onnx"):
        read(saved(tmp_path / "net", default="call"), tmp_path, opset=29)


def test_an_operation_that_onnx_has_not_is_named(tmp_path):
    net = tf.Module()
    net.call = tf.function(
        lambda image: {"y": tf.signal.rfft2d(tf.transpose(image, (0, 3, 1, 2)))},
        input_signature=[tf.TensorSpec((1, 16, 12, 3), tf.float32, name="image")],
    )
    tf.saved_model.save(net, str(tmp_path / "fft"), signatures={"serving_default": net.call})

    with pytest.raises((BackendError, ConversionError)) as caught:
        read(tmp_path / "fft", tmp_path)
    assert tf_bridge.OPSET == 18
    assert "fft" in caught.value.message
