"""What runs the graphs: onnxruntime or OpenVINO, on a CPU, in float32."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .errors import ExportError, first_line
from .folder import FEATURES, REFINE


class Engine:
    """Both graphs in what an engine makes of them.

    Args:
        folder (Path): with the graphs.
        num_threads (int | None): of one operator. None: the engine's choice.

    Raises:
        ExportError: if the engine is not installed, or cannot load a graph, such as for an operator that it lacks.
    """

    name: str  # in messages

    def __init__(self, folder: Path, num_threads: int | None = None) -> None:
        load = self._loader(num_threads)
        self._features, self._refine = (self._loaded(load, folder / name) for name in (FEATURES, REFINE))

    def features(self, images: np.ndarray) -> list[np.ndarray]:
        """Images, shape (B, 3, H, W), to levels."""
        return self._run(self._features, [images])

    def refine(self, levels: Sequence[np.ndarray], bboxes: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
        """Levels, boxes (B, N, 4), t (B,) to logits (B, N, C) and boxes (B, N, 4) of the last stage."""
        return self._run(self._refine, [*levels, bboxes, t])

    def _loaded(self, load: Callable[[str], object], file: Path) -> object:
        try:
            return load(str(file))
        except Exception as error:  # of many kinds, whose only common base is Exception
            raise ExportError(_cannot_load(self.name, file, error)) from error

    @classmethod
    def _run(cls, graph: object, inputs: list[np.ndarray]) -> list[np.ndarray]:
        try:
            return cls._outputs(graph, inputs)
        except Exception as error:  # such as memory that is not to be had
            raise ExportError(_cannot_run(cls.name, inputs, error)) from error

    def _loader(self, num_threads: int | None) -> Callable[[str], object]:
        """What makes a graph of the path of a file."""
        raise NotImplementedError

    @staticmethod
    def _outputs(graph: object, inputs: list[np.ndarray]) -> list[np.ndarray]:
        raise NotImplementedError


class OnnxRuntimeEngine(Engine):
    """Both graphs in onnxruntime; left to itself it takes a thread a core."""

    name = 'onnxruntime'

    def _loader(self, num_threads: int | None) -> Callable[[str], object]:
        onnxruntime = _import('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        return lambda path: onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])

    @staticmethod
    def _outputs(graph: object, inputs: list[np.ndarray]) -> list[np.ndarray]:
        names = [one.name for one in graph.get_inputs()]
        return graph.run(None, dict(zip(names, inputs, strict=True)))


class OpenVINOEngine(Engine):
    """Both graphs in OpenVINO."""

    name = 'OpenVINO'

    def _loader(self, num_threads: int | None) -> Callable[[str], object]:
        openvino = _import('openvino')
        # Left to itself it computes in bfloat16 where the processor can, which moves boxes by pixels.
        config = dict(INFERENCE_PRECISION_HINT='f32')
        if num_threads is not None:
            config['INFERENCE_NUM_THREADS'] = num_threads
        core = openvino.Core()
        return lambda path: core.compile_model(core.read_model(path), 'CPU', config)

    @staticmethod
    def _outputs(graph: object, inputs: list[np.ndarray]) -> list[np.ndarray]:
        # A request of its own, since threads would write into one another's.
        return [np.array(output) for output in graph.create_infer_request().infer(inputs).values()]


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
