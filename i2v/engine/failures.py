"""What an exception of PyTorch's means: memory ran short, the GPU is lost, or neither. Reads types and texts alone."""

import torch

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # the CPU allocator
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cublas_status_not_initialized when calling `cublascreate",  # no room for a handle
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
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


def is_fatal(error: BaseException) -> bool:
    """True when the CUDA context is lost and only a new process can go on. Only PyTorch's own errors are read."""
    if not isinstance(error, RuntimeError) or _ran_short(error):
        return False
    text = str(error).lower()
    speaks_of_gpu = isinstance(error, torch.AcceleratorError) or any(w in text for w in ("cuda", "cublas", "cudnn"))
    return speaks_of_gpu and any(reason in text for reason in _FATAL)
