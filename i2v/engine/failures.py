"""What an exception of PyTorch's means: memory ran short, the GPU is lost, or neither. Reads types and texts alone."""

import logging
import re
from typing import NamedTuple

import torch

log = logging.getLogger(__name__)


class Text(NamedTuple):
    """A text that means that memory ran short: a pattern for `re.search`, whatever the case, and why it means that."""

    pattern: str
    meaning: str
    source: str


OUT_OF_MEMORY = (
    Text(
        "out of memory",
        "the allocator, the CUDA runtime (device and page-locked memory) and the driver under Triton say it in words",
        "c10/cuda/CUDACachingAllocator.cpp, CUDAException.cpp, driver_api.h; Triton's nvidia/driver.c",
    ),
    Text(
        "(cuda|nvrtc)_error_out_of_memory|cudaerrormemoryallocation",
        "the same by the name of its code",
        "cuda.h, nvrtc.h, driver_types.h",
    ),
    Text(
        "can('t|not) allocate memory",
        "the CPU allocator, and a file that could not be mapped (ENOMEM)",
        "c10/core/impl/alloc_cpu.cpp, aten/src/ATen/MapAllocator.cpp",
    ),
    Text("std::bad_alloc", "C++ code had no main memory", "torch/csrc/Exceptions.h makes it a RuntimeError"),
    Text(
        "(cublas|cudnn|cusolver)_status_alloc_failed",
        "a library found no memory for its own use",
        "ATen/cuda/Exceptions.h: AT_CUDNN_CHECK, TORCH_CUDABLAS_CHECK, TORCH_CUSOLVER_CHECK",
    ),
    Text(
        "cudnn_status_internal_error_(device|host)_allocation_failed",
        "the same from cuDNN 9, which counts it among its internal errors",
        "cudnn_graph.h; AT_CUDNN_CHECK and AT_CUDNN_FRONTEND_CHECK",
    ),
    Text(
        "cublas_status_not_initialized when calling `cublas(lt)?create",
        "no room for cuBLAS' handle",
        "ATen/cuda/CublasHandlePool.cpp",
    ),
    Text("cudnn_status_not_initialized", "no room for cuDNN's handle", "ATen/cudnn/Handle.cpp"),
    Text(
        "(get|find) was unable to find an engine to execute this computation",
        "cuDNN's algorithms were tried one by one, and the OutOfMemoryError of each workspace was swallowed",
        "ATen/native/cudnn/Conv_v8.cpp: try_plans, try_configs",
    ),
    Text(
        "unable to find a valid cudnn algorithm to run convolution",
        "the same where cuDNN's older interface is chosen",
        "ATen/native/cudnn/Conv_v7.cpp: try_all",
    ),
    Text(
        "nvml_success == .*cudacachingallocator",
        "the message of an OutOfMemoryError was to name other processes; containers and MIG forbid to ask for them",
        "c10/cuda/CUDACachingAllocator.cpp: reportProcessMemoryInfo",
    ),
)

# After these the CUDA context is lost: every later call fails until the process ends.
_FATAL = (
    "an illegal memory access",
    "illegal address",
    "device-side assert",
    "uncorrectable",  # ECC and NVLink
    "unspecified launch failure",
    "launch timed out",
    "misaligned address",
    "an illegal instruction",
    "invalid program counter",
    "hardware stack error",
    "operation not supported on global/shared address space",
    "context is destroyed",
    "device is lost",
    "gpu is lost",
    "unknown error",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cublas_status_mapping_error",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
    "cudnn_status_mapping_error",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True when memory ran short on the GPU or the CPU; the process is sound and a smaller plan may do.

    A CUDA graph's capture that ends early raises an error of its own over the real one, so a RuntimeError is asked for
    what it was raised over as well.
    """
    if _ran_short(error):
        return True
    if not isinstance(error, RuntimeError) or is_fatal(error):
        return False
    seen = {id(error)}
    below = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    while below is not None and id(below) not in seen:
        if _ran_short(below):
            return True
        seen.add(id(below))
        below = below.__cause__ or (None if below.__suppress_context__ else below.__context__)
    return False


def _ran_short(error: BaseException) -> bool:
    """What only its text tells is logged: such a text may have another cause, a broken cuDNN for example."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = _recognise(error)
    if text is not None:
        log.warning("read as out of memory (%s; %s): %s", text.meaning, text.source, error)
    return text is not None


def _recognise(error: BaseException) -> Text | None:
    if not isinstance(error, RuntimeError):
        return None
    flags = re.IGNORECASE | re.DOTALL
    return next((text for text in OUT_OF_MEMORY if re.search(text.pattern, str(error), flags)), None)


def is_fatal(error: BaseException) -> bool:
    """True when the CUDA context is lost and only a new process can go on. Only PyTorch's own errors are read."""
    if not isinstance(error, RuntimeError) or _recognise(error) is not None:
        return False
    text = str(error).lower()
    speaks_of_gpu = isinstance(error, torch.AcceleratorError) or any(w in text for w in ("cuda", "cublas", "cudnn"))
    return speaks_of_gpu and any(reason in text for reason in _FATAL)
