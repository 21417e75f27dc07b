"""The view of ONNX files that devices check; generated from onnx_view.proto."""
