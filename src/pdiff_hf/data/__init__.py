from .dataset import dataset_vectors, load_base_model, load_parameter_dataset, save_parameter_dataset, update_columns
from .record import ParameterRecorder, ParameterRecorderCallback, finish_recording

__all__ = [
    "ParameterRecorder",
    "ParameterRecorderCallback",
    "dataset_vectors",
    "finish_recording",
    "load_base_model",
    "load_parameter_dataset",
    "save_parameter_dataset",
    "update_columns",
]
