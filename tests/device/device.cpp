// A device of type CUDA that computes on the CPU. What it adds are the rules of a GPU: a memory of its own, of limited
// size and counted; no operation between its tensors and the CPU's; counts of kernels and of waits for the device; graphs
// of operations that are recorded without being run, and run together.
//
// Every operation that reaches the device goes through `run_on_cpu`: each of its tensors lends its memory to a CPU
// tensor, the CPU's kernel runs, and what comes out becomes the device's. Written against the headers of torch 2.13.

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/copy_ops.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace {

const c10::Device DEVICE(c10::DeviceType::CUDA, 0);

// ---- memory: counted, limited ----

// `reserved` is what an allocator that keeps what it is given back would hold: the most since it was emptied.
std::atomic<int64_t> allocated{0}, reserved{0}, peak{0}, refused{0}, limit{INT64_MAX};

void raise_to(std::atomic<int64_t>& highest, int64_t now) {
  int64_t before = highest;
  while (now > before && !highest.compare_exchange_weak(before, now)) {
  }
}

void take(int64_t bytes) {
  const int64_t now = allocated += bytes;
  if (now > limit) {
    allocated -= bytes;
    refused++;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes, " bytes; ",
                     limit - (now - bytes), " of ", limit.load(), " are free.");
  }
  raise_to(peak, now);
  raise_to(reserved, now);
}

// Memory of the device: a CPU storage that nobody else holds.
struct Held {
  c10::Storage storage;
  int64_t bytes;
};

void give_back(void* context) {
  auto* held = static_cast<Held*>(context);
  allocated -= held->bytes;
  delete held;
}

c10::DataPtr device_memory(c10::Storage storage) {
  const auto bytes = static_cast<int64_t>(storage.nbytes());
  take(bytes);
  void* data = storage.mutable_data();
  return {data, new Held{std::move(storage), bytes}, &give_back, DEVICE};
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto storage = c10::Storage(c10::Storage::use_byte_size_t(), bytes, c10::GetCPUAllocator(), true);
    if (bytes) memset(storage.mutable_data(), 0xff, bytes);  // what nobody has written is NaN, -1 or True
    return device_memory(std::move(storage));
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
};
Memory memory;

// ---- what torch asks of a device: there is one, and its one stream is always done ----

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device device) const override { TORCH_CHECK(device.index() <= 0, "invalid device ordinal"); }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::Stream getDefaultStream(c10::Device) const override { return getStream(DEVICE); }
  c10::Stream exchangeStream(c10::Stream) const override { return getStream(DEVICE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// ---- counts ----

std::map<std::string, int64_t> counts;  // by "kernel NAME", "wait NAME" or "view NAME"
std::mutex counting;                    // going backward has a thread of its own

void count(const std::string& what) {
  std::lock_guard<std::mutex> lock(counting);
  counts[what]++;
}

int64_t recording = 0;  // the graph that is being recorded; 0: none
bool waiting_forbidden = false;
bool broken = false;  // whether a recording broke off, which torch's allocator never gets over

// What a GPU does where the CPU would wait for it: mostly nothing.
void about_to_wait(const std::string& what) {
  TORCH_CHECK(recording || !waiting_forbidden, "called a synchronizing CUDA operation (", what, ")");
  broken |= recording != 0;
  TORCH_CHECK(!recording, "CUDA error: operation not permitted when stream is capturing (", what, ")");
}

// Operations whose result the CPU has to know before it goes on.
const std::set<std::string> WAITS = {"aten::_local_scalar_dense", "aten::_unique2", "aten::bincount", "aten::equal",
                                     "aten::masked_select",       "aten::nonzero",  "aten::repeat_interleave",
                                     "aten::unique_consecutive",  "aten::unique_dim"};
const std::set<std::string> INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_",
                                        "aten::_unsafe_index"};

bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.device().is_cuda(); }

bool is_view(const c10::FunctionSchema& schema) {
  const auto& returns = schema.returns();
  return !returns.empty() && returns[0].alias_info() && !returns[0].alias_info()->isWrite();
}

template <class Visit>
void each_tensor(const c10::IValue& value, Visit visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const auto& tensor : value.toOptionalTensorVector())
      if (tensor) visit(*tensor);
  }
}

// Refuses what a GPU refuses, and counts the rest; whether the CPU has to wait for the result.
bool check_and_count(const c10::FunctionSchema& schema, at::ArrayRef<c10::IValue> values) {
  const std::string& name = schema.name();
  bool any_on_device = false, masked = false;
  std::string elsewhere;
  for (size_t i = 0; i < values.size(); i++) {
    const auto& argument = schema.arguments()[i];
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    const bool index = INDEXING.count(name) && argument.name() == "indices";
    if (argument.name() == "generator")
      TORCH_CHECK(false, name, " draws random numbers on the device: a run would not repeat on another one");
    each_tensor(values[i], [&](const at::Tensor& tensor) {
      if (!tensor.defined()) return;
      any_on_device |= on_device(tensor);
      masked |= index && (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte);
      // Single numbers of the CPU may be read, and its indices.
      if (tensor.device().is_cpu() && !index && (tensor.dim() > 0 || written)) elsewhere = argument.name();
    });
  }
  TORCH_CHECK(!any_on_device || elsewhere.empty(),
              "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
              "(argument ", elsewhere, " of ", name, ")");
  const bool waits = masked || WAITS.count(name);
  if (!recording) count((is_view(schema) ? "view " : waits ? "wait " : "kernel ") + name);
  return waits;
}

// ---- the CPU's kernels on the device's memory ----

void same_layout(const at::Tensor& tensor, const at::Tensor& like) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
}

// The tensors of one operation on both sides.
class Sides {
 public:
  at::Tensor lent(const at::Tensor& tensor) {
    if (!on_device(tensor)) return tensor;
    for (const auto& [ours, cpu] : pairs_)
      if (ours.is_same(tensor)) return cpu;
    c10::Storage storage(c10::make_intrusive<c10::StorageImpl>(
        c10::StorageImpl::use_byte_size_t(), tensor.storage().nbytes(),
        c10::DataPtr(const_cast<void*>(tensor.storage().data()), c10::Device(c10::DeviceType::CPU)),
        c10::GetCPUAllocator(), true));
    auto cpu = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                        tensor.dtype());
    same_layout(cpu, tensor);
    pairs_.emplace_back(tensor, cpu);
    return cpu;
  }

  // What the CPU's kernel returned: an argument, a view of one, or memory of its own.
  at::Tensor returned(const at::Tensor& cpu) {
    if (!cpu.defined() || !cpu.device().is_cpu()) return cpu;
    for (const auto& [ours, lent] : pairs_) {
      if (lent.is_same(cpu)) return ours;
      if (cpu.storage().data() && cpu.storage().data() == ours.storage().data())
        return view(ours, cpu);
    }
    auto& storage = made_[cpu.storage().unsafeGetStorageImpl()];
    if (!storage)
      storage = c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
                                                                   cpu.storage().nbytes(),
                                                                   device_memory(cpu.storage()), &memory, true));
    auto ours = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage),
                                                         c10::DispatchKeySet(c10::DispatchKey::CUDA), cpu.dtype());
    same_layout(ours, cpu);
    return ours;
  }

  // Arguments that the kernel made larger.
  void follow_resizes() {
    for (const auto& [ours, cpu] : pairs_) {
      if (cpu.storage().data() != ours.storage().data()) {
        ours.storage().set_data_ptr_noswap(device_memory(cpu.storage()));
        ours.storage().set_nbytes(cpu.storage().nbytes());
      }
      if (ours.sizes() != cpu.sizes() || ours.strides() != cpu.strides()) same_layout(ours, cpu);
    }
  }

 private:
  static at::Tensor view(const at::Tensor& base, const at::Tensor& like) {
    auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()),
                                                           base.key_set(), like.dtype());
    same_layout(tensor, like);
    return tensor;
  }

  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;  // the device's, and the CPU's in the same memory
  std::map<const c10::StorageImpl*, c10::Storage> made_;  // by the CPU's storage, the device's
};

template <class Change>
c10::IValue changed(const c10::IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(change(tensor));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const auto& tensor : value.toOptionalTensorVector())
      list.push_back(tensor ? std::optional<at::Tensor>(change(*tensor)) : std::nullopt);
    return list;
  }
  return value;
}

void compute(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const size_t first = stack->size() - schema.arguments().size();
  Sides sides;
  for (size_t i = first; i < stack->size(); i++)
    (*stack)[i] = changed((*stack)[i], [&](const at::Tensor& tensor) { return sides.lent(tensor); });
  operation.callBoxed(stack);
  sides.follow_resizes();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++)
    (*stack)[i] = changed((*stack)[i], [&](const at::Tensor& tensor) { return sides.returned(tensor); });
}

// ---- graphs: operations with the memory that they read and write ----

struct Operation {
  c10::OperatorHandle handle;
  torch::jit::Stack arguments, results;
};
std::map<int64_t, std::vector<Operation>> graphs;

void* memory_of(const at::Tensor& tensor) { return const_cast<void*>(tensor.storage().data()); }

// By the memory that a recording wrote to, what was there before.
std::map<void*, std::pair<at::Tensor, std::string>> before_recording;

void remember(const at::Tensor& tensor) {
  const auto* bytes = static_cast<const char*>(memory_of(tensor));
  if (!before_recording.count(memory_of(tensor)))
    before_recording[memory_of(tensor)] = {tensor, std::string(bytes, tensor.storage().nbytes())};
}

// Operations are computed all the same, for the shapes of their results; `end_recording` undoes what they did.
void record(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const size_t first = stack->size() - schema.arguments().size();
  torch::jit::Stack arguments(stack->begin() + first, stack->end());
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias && alias->isWrite())
      each_tensor(arguments[i], [&](const at::Tensor& tensor) { if (on_device(tensor)) remember(tensor); });
  }
  compute(operation, stack);
  torch::jit::Stack results(stack->end() - schema.returns().size(), stack->end());
  graphs[recording].push_back({operation, std::move(arguments), std::move(results)});
}

void end_recording() {
  for (const auto& [memory, before] : before_recording) memcpy(memory, before.second.data(), before.second.size());
  before_recording.clear();
  recording = 0;
}

void replay(const Operation& operation) {
  torch::jit::Stack stack = operation.arguments;
  compute(operation.handle, &stack);
  const size_t first = stack.size() - operation.results.size();
  for (size_t i = 0; i < operation.results.size(); i++) {
    std::vector<at::Tensor> made, place;
    each_tensor(stack[first + i], [&](const at::Tensor& tensor) { made.push_back(tensor); });
    each_tensor(operation.results[i], [&](const at::Tensor& tensor) { place.push_back(tensor); });
    for (size_t j = 0; j < made.size(); j++)
      if (on_device(made[j]) && memory_of(made[j]) != memory_of(place[j]))
        memcpy(memory_of(place[j]), memory_of(made[j]), place[j].storage().nbytes());
  }
}

void run_on_cpu(const c10::OperatorHandle& operation, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = operation.schema();
  const size_t first = stack->size() - schema.arguments().size();
  const bool waits = check_and_count(schema, at::ArrayRef<c10::IValue>(stack->data() + first, stack->size() - first));
  if (waits) about_to_wait(schema.name());
  if (!recording) return compute(operation, stack);
  record(operation, stack);
}

// ---- what takes no tensor of the device, or tensors of both ----

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (!(on_device(to) && on_device(from)) && !(on_device(to) && non_blocking && !recording))
    about_to_wait("a copy between the device and the CPU");
  if (recording) {
    torch::jit::Stack stack{to, from, false};
    record(c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", ""), &stack);
    return to;
  }
  if (on_device(to) && on_device(from))
    count("kernel aten::copy_");
  else if (on_device(to))
    count(non_blocking ? "kernel copy to the device" : "wait copy to the device");
  else
    count("wait copy to the CPU");
  Sides sides;
  at::Tensor written = sides.lent(to);
  at::_ops::copy_::call(written, sides.lent(from), false);
  return to;
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   dtype.value_or(c10::get_default_dtype_as_scalartype()), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           dtype.value_or(c10::get_default_dtype_as_scalartype()));
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("copy_", TORCH_FN(copy_));
  library.impl("empty.memory_format", TORCH_FN(empty));
  library.impl("empty_strided", TORCH_FN(empty_strided));
}

// Attention takes its plain path: matrix products and a softmax.
int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                        double, bool, std::optional<double>, bool) {
  return 0;  // SDPBackend::math
}

const bool registered = [] {
  c10::SetAllocator(c10::DeviceType::CUDA, &memory);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&plain_attention);
  return true;
}();

}  // namespace

namespace at {
struct Hooks final : CUDAHooksInterface {
  explicit Hooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  Device getDeviceFromPtr(void*) const override { return DEVICE; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  Allocator* getCUDADeviceAllocator() const override { return &memory; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(DeviceIndex) const override {}
};
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks);
}  // namespace at

extern "C" {
int64_t device_allocated() { return allocated; }
int64_t device_reserved() { return reserved; }
void device_empty_cache() { reserved = allocated.load(); }
int64_t device_peak() { return peak; }
int64_t device_refused() { return refused; }
void device_reset_peak() { peak = allocated.load(); }
void device_limit(int64_t bytes) { limit = bytes; }

int64_t device_graph_begin() {
  static int64_t last = 0;
  graphs[++last];
  return recording = last;
}
int device_graph_end() {
  end_recording();
  return broken;
}
int device_broken() { return broken; }
void device_forbid_waiting(int forbidden) { waiting_forbidden = forbidden; }
void device_graph_drop(int64_t graph) { graphs.erase(graph); }

// What went wrong, or an empty text.
const char* device_graph_replay(int64_t graph) {
  static std::string text;
  text.clear();
  count("kernel graph");
  try {
    for (const auto& operation : graphs.at(graph)) replay(operation);
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}

// One line a count, "WHAT<tab>N"; then the counts begin again at 0.
const char* device_counts() {
  static std::string text;
  std::lock_guard<std::mutex> lock(counting);
  text.clear();
  for (const auto& [what, number] : counts) text += what + "\t" + std::to_string(number) + "\n";
  counts.clear();
  return text.c_str();
}
}
