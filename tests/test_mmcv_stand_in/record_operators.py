"""Record what mmcv's compiled operators give. Run it where mmcv is compiled: ``python FILE``."""

import sys

import numpy as np
import operator_cases as cases

import mmcv_stand_in


def joined(arrays: list[np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Arrays of different lengths as one, and their lengths; small integers, to keep the file small."""
    values = np.concatenate(arrays)
    return {name: values.astype(np.int16 if values.dtype == np.int64 else np.float32),
            f'{name} lengths': np.array([len(array) for array in arrays], dtype=np.int16)}


def main() -> None:
    if mmcv_stand_in.is_active():
        sys.exit('the operators of this mmcv are stand-ins; record compiled ones')
    soft_nms = list(cases.soft_nms_results())
    recording = {
        **joined(list(cases.nms_indices()), 'nms'),
        **joined([indices for indices, _ in soft_nms], 'soft_nms'),
        **joined([scores for _, scores in soft_nms], 'soft_nms scores'),
        **joined(list(cases.nms_match_groups()), 'nms_match'),
    }
    for name, results in cases.arithmetic_results():
        recording.update({f'{name} {index}': result for index, result in enumerate(results)})
    cases.RECORDING.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(cases.RECORDING, **recording)
    print(f'{cases.RECORDING}: {cases.RECORDING.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    main()
