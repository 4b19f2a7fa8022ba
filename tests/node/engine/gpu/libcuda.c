/* Stands in for NVIDIA's driver on a machine that has none, so that MXNet's CUDA build loads there: every call says
   that there is no device (CUDA_ERROR_NO_DEVICE). The names are those that libmxnet.so links and libcudart.so asks. */
#define NONE(name) int name(void) { return 100; }
NONE(cuInit)
NONE(cuDriverGetVersion)
NONE(cuDeviceGet)
NONE(cuDeviceGetCount)
NONE(cuDevicePrimaryCtxRetain)
NONE(cuGetErrorString)
NONE(cuGraphKernelNodeGetParams)
NONE(cuGraphNodeGetType)
NONE(cuLaunchKernel)
NONE(cuModuleGetFunction)
NONE(cuModuleLoadData)
NONE(cuModuleLoadDataEx)
NONE(cuModuleUnload)
