// SPDX-License-Identifier: Apache-2.0
// A CUDA device that computes nothing, for a torch without CUDA: tensors of the device have memory on the host with unknown values,
// and operators allocate their results and return. Compiled and loaded by idle_cuda.py.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/Resize.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
    c10::Device getDevice() const override { return kDevice; }
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
c10::impl::DeviceGuardImplRegistrar registered_guard(c10::DeviceType::CUDA, new Guard);

struct Block {
    void* memory;
    size_t bytes;
};

bool reuses_memory = true;

// Freed blocks are used again for tensors of the same size, as by the caching allocator of CUDA.
struct Allocator final : c10::Allocator {
    std::unordered_map<size_t, std::vector<Block*>> freed;
    std::mutex mutex;

    static Allocator& get() {
        static Allocator* instance = new Allocator;
        return *instance;
    }
    static void release(void* context) {
        auto* block = static_cast<Block*>(context);
        std::lock_guard lock(get().mutex);
        get().freed[block->bytes].push_back(block);
    }
    c10::DataPtr allocate(size_t bytes) override {
        bytes = (bytes + 511) / 512 * 512;
        std::lock_guard lock(mutex);
        auto& blocks = freed[bytes];
        Block* block;
        if (blocks.empty() || !reuses_memory) {
            block = new Block{bytes == 0 ? nullptr : std::aligned_alloc(512, bytes), bytes};
        } else {
            block = blocks.back();
            blocks.pop_back();
        }
        return {block->memory, block, &release, kDevice};
    }
    c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
    void copy_data(void*, const void*, std::size_t) const override {}
};

const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
    return at::detail::empty_generic_symint(size, &Allocator::get(), kKeys, dtype.value_or(at::kFloat), format);
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
    return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &Allocator::get(), kKeys,
                                             dtype.value_or(at::kFloat));
}

// Addresses of the sources and targets of the last copies, for tests.
constexpr int kCopies = 1024;
intptr_t copies[kCopies][2];
int copy_count = 0;

at::Tensor& copy(at::Tensor& self, const at::Tensor& source, bool) {
    intptr_t* pair = copies[copy_count++ % kCopies];
    pair[0] = reinterpret_cast<intptr_t>(source.data_ptr());
    pair[1] = reinterpret_cast<intptr_t>(self.data_ptr());
    return self;
}

at::Scalar read_scalar(const at::Tensor&) { return at::Scalar(0); }

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef, const std::optional<at::Tensor>&,
                    at::IntArrayRef stride, at::IntArrayRef padding) {
    const auto size = [&](int k) { return (x.size(2 + k) + 2 * padding[k] - weight.size(2 + k)) / stride[k] + 1; };
    return at::empty({x.size(0), weight.size(0), size(0), size(1)}, x.options().memory_format(x.suggest_memory_format()));
}

// The operator allocates a tensor without elements before.
at::Tensor& arange(const at::Scalar& start, const at::Scalar& end, const at::Scalar& step, at::Tensor& out) {
    const int64_t count = std::ceil((end.toDouble() - start.toDouble()) / step.toDouble());
    const at::Tensor made = at::empty({count}, out.options());
    out.unsafeGetTensorImpl()->set_storage_keep_dtype(made.storage());
    out.unsafeGetTensorImpl()->set_sizes_contiguous({count});
    return out;
}

at::Tensor to_meta(const at::Tensor& t) {
    return t.defined() ? at::Tensor(at::detail::empty_strided_meta(t.sizes(), t.strides(), t.scalar_type())) : t;
}

at::Tensor from_meta(const at::Tensor& t) {
    if (!t.defined() || !t.is_meta()) return t;
    return at::detail::empty_strided_generic(t.sizes(), t.strides(), &Allocator::get(), kKeys, t.scalar_type());
}

// Operators without a kernel: those that write to arguments return them, others allocate the results that their meta kernels describe.
void run_nothing(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    const auto& schema = op.schema();
    const size_t count = schema.arguments().size(), first = stack->size() - count;
    std::vector<c10::IValue> written;
    for (size_t k = 0; k < count; ++k) {
        const auto* alias = schema.arguments()[k].alias_info();
        if (alias != nullptr && alias->isWrite()) written.push_back((*stack)[first + k]);
    }
    if (!written.empty() || schema.returns().empty()) {
        stack->resize(first);
        for (size_t k = 0; k < schema.returns().size() && k < written.size(); ++k) stack->push_back(written[k]);
        return;
    }
    torch::jit::Stack meta;
    for (size_t k = first; k < stack->size(); ++k) {
        const c10::IValue& value = (*stack)[k];
        if (value.isTensor()) {
            meta.emplace_back(to_meta(value.toTensor()));
        } else if (value.isTensorList()) {
            c10::List<at::Tensor> list;
            for (const at::Tensor& t : value.toTensorVector()) list.push_back(to_meta(t));
            meta.emplace_back(list);
        } else if (value.isOptionalTensorList()) {
            c10::List<std::optional<at::Tensor>> list;
            for (const auto& t : value.toOptionalTensorVector()) list.push_back(t.has_value() ? std::optional(to_meta(*t)) : t);
            meta.emplace_back(list);
        } else if (value.isDevice()) {
            meta.emplace_back(c10::Device(c10::kMeta));
        } else {
            meta.push_back(value);
        }
    }
    {
        c10::impl::ExcludeDispatchKeyGuard guard(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
        op.callBoxed(&meta);
    }
    stack->resize(first);
    for (c10::IValue& value : meta) {
        if (value.isTensor()) {
            stack->emplace_back(from_meta(value.toTensor()));
        } else if (value.isTensorList()) {
            c10::List<at::Tensor> list;
            for (const at::Tensor& t : value.toTensorVector()) list.push_back(from_meta(t));
            stack->emplace_back(list);
        } else {
            stack->push_back(value);
        }
    }
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    m.impl("view", [](const at::Tensor& self, at::IntArrayRef size) { return at::native::view(self, size); });
    m.impl("as_strided", [](const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride, std::optional<int64_t> offset) {
        return at::native::as_strided_tensorimpl(self, size, stride, offset);
    });
    m.impl("_reshape_alias", [](const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
        return at::native::as_strided_tensorimpl(self, size, stride, self.storage_offset());
    });
    m.impl("arange.start_out", &arange);
    m.impl("copy_", &copy);
    m.impl("_local_scalar_dense", &read_scalar);
    m.impl("_slow_conv2d_forward", &convolve);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_nothing>()); }

}  // namespace

// Makes all later tensors have addresses of their own, for tests.
extern "C" void stop_reuse() { reuses_memory = false; }

// Writes the addresses of the copies since the last call, and returns their number.
extern "C" int take_copies(intptr_t* to) {
    const int count = std::min(copy_count, kCopies);
    std::memcpy(to, copies, sizeof(copies[0]) * count);
    copy_count = 0;
    return count;
}
