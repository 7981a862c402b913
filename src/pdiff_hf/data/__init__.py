from .append import append_dataset_folder, append_parameter_dataset
from .configs import dataset_configs, write_configs
from .dataset import dataset_vectors, load_base_model, load_parameter_dataset, save_parameter_dataset, update_columns
from .record import ParameterRecorder, ParameterRecorderCallback, finish_recording

__all__ = [
    "ParameterRecorder",
    "ParameterRecorderCallback",
    "append_dataset_folder",
    "append_parameter_dataset",
    "dataset_configs",
    "dataset_vectors",
    "finish_recording",
    "load_base_model",
    "load_parameter_dataset",
    "save_parameter_dataset",
    "update_columns",
    "write_configs",
]
