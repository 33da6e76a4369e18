"""Which exceptions mean that memory ran short, which that the GPU is lost, and which neither."""

import pytest
import torch

from i2v.engine import failures

ASYNCHRONOUS = (
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)
ALLOCATOR = '"/pytorch/c10/cuda/CUDACachingAllocator.cpp":1131, please report a bug to PyTorch. '

# By their pattern in `failures.OUT_OF_MEMORY`: messages as PyTorch, its libraries and Triton write them
MESSAGES = {
    "out of memory": (
        f"CUDA error: out of memory\n{ASYNCHRONOUS}",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
    ),
    "(cuda|nvrtc)_error_out_of_memory|cudaerrormemoryallocation": (
        "cuLaunchKernelEx failed: CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA NVRTC error: NVRTC_ERROR_OUT_OF_MEMORY",
        "cudaHostAlloc of 2147483648 bytes: cudaErrorMemoryAllocation",
    ),
    "can('t|not) allocate memory": (
        "[enforce fail at alloc_cpu.cpp:127] data != nullptr. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 68719476736 bytes. Error code 12",
        "unable to mmap 2840938448 bytes from file <diffusion_pytorch_model.safetensors>: Cannot allocate memory (12)",
    ),
    "std::bad_alloc": ("std::bad_alloc",),
    "(cublas|cudnn|cusolver)_status_alloc_failed": (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle, computeDesc.descriptor())`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`. If you keep seeing",
    ),
    "cudnn_status_internal_error_(device|host)_allocation_failed": (
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cuDNN Frontend error: [cudnn_frontend] Error: cudnnBackendFinalize failed with code: "
        "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    ),
    "cublas_status_not_initialized when calling `cublas(lt)?create": (
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(handle)`",
    ),
    "cudnn_status_not_initialized": ("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",),
    "(get|find) was unable to find an engine to execute this computation": (
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
    ),
    "unable to find a valid cudnn algorithm to run convolution": (
        "Unable to find a valid cuDNN algorithm to run convolution",
    ),
    "nvml_success == .*cudacachingallocator": (
        f"NVML_SUCCESS == r INTERNAL ASSERT FAILED at {ALLOCATOR}",
        f"NVML_SUCCESS == DriverAPI::get()->nvmlInit_v2_() INTERNAL ASSERT FAILED at {ALLOCATOR}",
        "NVML_SUCCESS == DriverAPI::get()->nvmlDeviceGetHandleByPciBusId_v2_( pci_id, &nvml_device) "
        f"INTERNAL ASSERT FAILED at {ALLOCATOR}",
    ),
}


@pytest.mark.parametrize("text", failures.OUT_OF_MEMORY, ids=lambda text: text.pattern)
def test_each_text_of_the_table_recognises_messages_that_no_other_one_does(
    text: failures.Text, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """cuDNN's and NVML's were taken for a lost GPU, or for nothing known, and the job failed at once."""
    errors = [RuntimeError(message) for message in MESSAGES[text.pattern]]
    assert [error for error in errors if not failures.is_out_of_memory(error) or failures.is_fatal(error)] == []
    assert caplog.messages == [f"read as out of memory ({text.meaning}; {text.source}): {error}" for error in errors]
    monkeypatch.setattr(failures, "OUT_OF_MEMORY", [other for other in failures.OUT_OF_MEMORY if other != text])
    assert [error for error in errors if failures.is_out_of_memory(error)] == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
        MemoryError(),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError(
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR; inner: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED: CUDA error: out of memory"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:40]}",
)
def test_running_out_of_memory_is_recognised_and_not_fatal(error: BaseException) -> None:
    assert failures.is_out_of_memory(error)
    assert not failures.is_fatal(error)


def test_a_kernel_that_asks_for_more_than_a_multiprocessor_has_is_not_out_of_memory() -> None:
    """A smaller plan would not help: what is short is on the chip."""
    runtime = pytest.importorskip("triton.runtime.errors", reason="Triton has no package for this system")
    error = runtime.OutOfResources(required=262144, limit=232448, name="shared memory")
    assert not failures.is_out_of_memory(error)
    assert not failures.is_out_of_memory(RuntimeError(str(error)))
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
        ValueError("GET was unable to find an engine to execute this computation"),
        RuntimeError(
            'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/aten/src/ATen/cuda/PeerToPeerAccess.cpp":112'
        ),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:40]}",
)
def test_an_ordinary_error_is_neither(error: BaseException) -> None:
    assert not failures.is_fatal(error)
    assert not failures.is_out_of_memory(error)
