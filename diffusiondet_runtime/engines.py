"""What runs the graphs: onnxruntime or OpenVINO, on a CPU, in float32."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import ExportError, first_line
from .folder import FEATURES, REFINE


class OnnxRuntimeEngine:
    """Both graphs in onnxruntime.

    Args:
        folder (Path): with the graphs.
        num_threads (int | None): of one operator. None: onnxruntime's choice, one a core.

    Raises:
        ExportError: if onnxruntime is not installed, or cannot load a graph, such as for an operator that it lacks.
    """

    def __init__(self, folder: Path, num_threads: int | None = None) -> None:
        onnxruntime = _import('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads

        def load(name: str):
            try:
                return onnxruntime.InferenceSession(str(folder / name), options, providers=['CPUExecutionProvider'])
            except Exception as error:  # of many kinds, whose only common base is Exception
                raise ExportError(_cannot_load('onnxruntime', folder / name, error)) from error

        self._features, self._refine = load(FEATURES), load(REFINE)

    def features(self, images: np.ndarray) -> list[np.ndarray]:
        """Images, shape (B, 3, H, W), to levels."""
        return self._run(self._features, [images])

    def refine(self, levels: Sequence[np.ndarray], bboxes: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
        """Levels, boxes (B, N, 4), t (B,) to logits (B, N, C) and boxes (B, N, 4) of the last stage."""
        return self._run(self._refine, [*levels, bboxes, t])

    @staticmethod
    def _run(session, inputs: list[np.ndarray]) -> list[np.ndarray]:
        names = [one.name for one in session.get_inputs()]
        try:
            return session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:  # such as memory that is not to be had
            raise ExportError(_cannot_run('onnxruntime', inputs, error)) from error


class OpenVINOEngine:
    """Both graphs in OpenVINO.

    Args:
        folder (Path): with the graphs.
        num_threads (int | None): None: OpenVINO's choice.

    Raises:
        ExportError: if OpenVINO is not installed, or cannot load a graph.
    """

    def __init__(self, folder: Path, num_threads: int | None = None) -> None:
        openvino = _import('openvino')
        # Left to itself it computes in bfloat16 where the processor can, which moves boxes by pixels.
        config = dict(INFERENCE_PRECISION_HINT='f32')
        if num_threads is not None:
            config['INFERENCE_NUM_THREADS'] = num_threads
        core = openvino.Core()

        def load(name: str):
            try:
                return core.compile_model(core.read_model(str(folder / name)), 'CPU', config)
            except Exception as error:
                raise ExportError(_cannot_load('OpenVINO', folder / name, error)) from error

        self._features, self._refine = load(FEATURES), load(REFINE)

    def features(self, images: np.ndarray) -> list[np.ndarray]:
        """As :meth:`OnnxRuntimeEngine.features`."""
        return self._run(self._features, [images])

    def refine(self, levels: Sequence[np.ndarray], bboxes: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
        """As :meth:`OnnxRuntimeEngine.refine`."""
        return self._run(self._refine, [*levels, bboxes, t])

    @staticmethod
    def _run(model, inputs: list[np.ndarray]) -> list[np.ndarray]:
        try:  # a request of its own, since threads would write into one another's
            return [np.array(output) for output in model.create_infer_request().infer(inputs).values()]
        except Exception as error:
            raise ExportError(_cannot_run('OpenVINO', inputs, error)) from error


ENGINES = dict(onnxruntime=OnnxRuntimeEngine, openvino=OpenVINOEngine)


def _import(name: str):
    try:
        return __import__(name)
    except ImportError as error:
        raise ExportError(f'{name} is not installed here ({first_line(error)}); pip install {name}') from error


def _cannot_load(engine: str, file: Path, error: Exception) -> str:
    return f'{engine} cannot load {file}, for want of an operator or for damage: {first_line(error)}'


def _cannot_run(engine: str, inputs: list[np.ndarray], error: Exception) -> str:
    shapes = ', '.join(str(one.shape) for one in inputs)
    return f'{engine} cannot run inputs of {shapes}, perhaps for want of memory: {first_line(error)}'
