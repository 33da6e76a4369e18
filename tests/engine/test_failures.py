"""Which exceptions mean that memory ran short, which that the GPU is lost, and which neither."""

import pytest
import torch

from i2v.engine import failures


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:40]}",
)
def test_running_out_of_memory_is_recognised_and_not_fatal(error: BaseException) -> None:
    assert failures.is_out_of_memory(error)
    assert not failures.is_fatal(error)


def test_running_out_inside_a_failed_capture_is_recognised_and_a_lost_context_is_not() -> None:
    def over(last: str) -> BaseException:
        try:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                raise RuntimeError(last)  # as the capture's end does
        except RuntimeError as error:
            return error

    assert failures.is_out_of_memory(over("CUDA error: operation failed due to a previous error during capture"))
    lost = over("CUDA error: an illegal memory access was encountered")
    assert not failures.is_out_of_memory(lost)
    assert failures.is_fatal(lost)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: misaligned address"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    ],
    ids=lambda error: str(error)[:50],
)
def test_a_lost_context_is_fatal(error: BaseException) -> None:
    assert failures.is_fatal(error)
    assert not failures.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("a prompt about an illegal memory access"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        KeyError("CUDA error: unspecified launch failure"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:40]}",
)
def test_an_ordinary_error_is_neither(error: BaseException) -> None:
    assert not failures.is_fatal(error)
    assert not failures.is_out_of_memory(error)
