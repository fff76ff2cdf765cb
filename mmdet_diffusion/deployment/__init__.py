"""Export of a trained detector to ONNX. Needs the extra ``[export]``; ``diffusiondet_runtime`` runs what it writes."""
