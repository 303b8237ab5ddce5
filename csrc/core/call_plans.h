// SPDX-License-Identifier: Apache-2.0
// Plans of calls. A call of an op with the same key as an earlier call runs in this file, without the Python code of
// the op.
//
// A plan lists the native functions that the earlier call ran, with their arguments. The addresses of inputs, outputs
// and scratch memory are filled in for each call. The plan of a call with gradients, and of a call that torch computes,
// lists calls of autograd functions and of functions of torch (core/function_plans.h). fastds/ops/core/plans.py records the plans and decides which calls have one. Each Python thread has
// its own table of plans.
#pragma once
#include <Python.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "core/function_plans.h"
#include "core/plan_key.h"
#include "core/strided_copy.h"

namespace fastds::plans {

namespace py = pybind11;

constexpr size_t kMaxPlans = 1024;  // per thread; if there are more, the less recently used half is dropped
constexpr size_t kMaxPackedWeights = 1024;            // per input of a plan
constexpr int64_t kMaxPackedBytes = int64_t(256) << 20;  // per thread, summed over plans; packed weights are dropped beyond it
constexpr int64_t kScratchUnit = 1 << 20;  // bytes

struct NativeCall {
    py::object function;
    std::vector<Argument> arguments;
};

struct Output {
    py::object sizes, strides, dtype, device;
};

// A weight packed for a kernel, and a copy of the weight's bytes, which shows whether the weight has changed since.
struct PackedWeight {
    py::object copy, packed;
    const void* copy_data = nullptr;
    intptr_t packed_data = 0;
    int64_t bytes = 0;  // of both
};

// A weight of which the kernels read the packed form: an input, or some outputs or channels of one, whose elements are `rows` runs
// of memory. `weights` has one entry for each address, because layers of the same shape share a plan. `refresh(input)` returns
// (copy, packed) for the current bytes of the weight.
struct PackedInput {
    int input = 0;
    int64_t offset = 0;  // bytes from the beginning of the input
    int64_t rows = 1, row_bytes = 0, row_step = 0;  // number, size and distance of the runs in bytes; the copy has no gaps
    py::object refresh;

    bool is_unchanged(const void* weight, const void* copy) const {
        const char *current = static_cast<const char*>(weight), *before = static_cast<const char*>(copy);
        for (int64_t row = 0; row < rows; ++row)
            if (std::memcmp(current + row * row_step, before + row * row_bytes, row_bytes) != 0) return false;
        return true;
    }
    std::unordered_map<const void*, PackedWeight> weights;
    intptr_t packed_data = 0;  // of the call that runs
};

struct Plan {
    std::vector<NativeCall> calls;
    std::vector<Output> outputs;
    std::vector<int64_t> temporaries;  // offsets in the scratch memory
    std::vector<PackedInput> packed;
    int64_t scratch_bytes = 0;  // of temporaries and the largest workspace
    int64_t workspace_offset = 0;
    int result = 0;  // 0: one tensor; 1: a tuple; 2: a list; entries of -1 in `results` are None
    std::vector<int> results;
};

enum class State { seen, refused, ready };

struct Entry {
    std::vector<int64_t> key;
    std::vector<py::object> held;  // objects that the key names by their address
    State state = State::seen;
    uint64_t used = 0;
    std::shared_ptr<Plan> plan;
    std::shared_ptr<FunctionPlan> functions;  // in place of `plan`
};

struct Table {
    std::unordered_map<uint64_t, std::shared_ptr<Entry>> entries;
    uint64_t tick = 0, runs = 0;
    bool recording = false, recording_gradients = false, busy = false;
    char* scratch = nullptr;
    int64_t scratch_bytes = 0;
    ~Table() { std::free(scratch); }
};

// Returns the table of the current Python thread. The thread's dictionary owns the table, because Python frees this dictionary
// while it holds the GIL.
inline Table* get_table() {
    PyObject* dict = PyThreadState_GetDict();
    if (dict == nullptr) return nullptr;
    PyObject* capsule = PyDict_GetItem(dict, torch().table_key);
    if (capsule != nullptr) return static_cast<Table*>(PyCapsule_GetPointer(capsule, nullptr));
    auto* table = new Table;
    capsule = PyCapsule_New(table, nullptr, [](PyObject* c) { delete static_cast<Table*>(PyCapsule_GetPointer(c, nullptr)); });
    PyDict_SetItem(dict, torch().table_key, capsule);
    Py_DECREF(capsule);
    return table;
}

inline std::shared_ptr<Entry> find_entry(Table& table, const Key& key, uint64_t hash) {
    auto found = table.entries.find(hash);
    if (found == table.entries.end()) return nullptr;
    const std::vector<int64_t>& words = found->second->key;
    if (static_cast<int>(words.size()) != key.length || std::memcmp(words.data(), key.words, 8 * key.length) != 0) return nullptr;
    return found->second;
}

inline void drop_oldest(Table& table) {
    std::vector<uint64_t> ticks;
    for (auto& [hash, entry] : table.entries) ticks.push_back(entry->used);
    auto middle = ticks.begin() + ticks.size() / 2;
    std::nth_element(ticks.begin(), middle, ticks.end());
    std::vector<std::shared_ptr<Entry>> dropped;  // destroyed after the table is consistent again
    for (auto it = table.entries.begin(); it != table.entries.end();) {
        if (it->second->used < *middle) {
            dropped.push_back(it->second);
            it = table.entries.erase(it);
        } else {
            ++it;
        }
    }
}

// Calls function(input) for the inputs of all plans that the kernels read packed.
template <class Function>
void for_packed_inputs(Table& table, const Function& function) {
    for (auto& [hash, entry] : table.entries)
        if (entry->plan)
            for (PackedInput& input : entry->plan->packed) function(input);
}

inline int64_t count_packed_bytes(Table& table) {
    int64_t bytes = 0;
    for_packed_inputs(table, [&](PackedInput& input) {
        for (auto& [address, weight] : input.weights) bytes += weight.bytes;
    });
    return bytes;
}

// Drops the packed weights that plans hold. Calls that run later look them up again.
inline void drop_packed(Table& table) {
    std::vector<std::unordered_map<const void*, PackedWeight>> dropped;  // destroyed after the table is consistent again
    for_packed_inputs(table, [&](PackedInput& input) { dropped.push_back(std::exchange(input.weights, {})); });
}

struct Run {
    Table& table;
    Plan& plan;
    const Key& key;
    std::vector<py::object> outputs;
    std::vector<intptr_t> addresses;

    py::object fill(const Argument& a) const {
        intptr_t base = 0;
        switch (a.kind) {
            case Kind::constant: return a.constant;
            case Kind::input: base = reinterpret_cast<intptr_t>(key.tensors[a.index].data); break;
            case Kind::output: base = addresses[a.index]; break;
            case Kind::temporary: base = reinterpret_cast<intptr_t>(table.scratch) + plan.temporaries[a.index]; break;
            case Kind::packed: base = plan.packed[a.index].packed_data; break;
            case Kind::workspace: base = reinterpret_cast<intptr_t>(table.scratch) + plan.workspace_offset; break;
            case Kind::sequence:
                return a.variable ? make_sequence(a.items, PyList_CheckExact(a.constant.ptr()), *this) : a.constant;
        }
        return py::reinterpret_steal<py::object>(PyLong_FromLongLong(base + a.offset));
    }

    // Finds the packed form of each weight. A weight whose bytes have changed is packed again, which may overwrite the memory of
    // other packed weights; all weights are then compared once more. Returns false if no consistent set was found.
    bool find_packed() {
        for (int attempt = 0; attempt < 3; ++attempt) {
            bool complete = true;
            for (PackedInput& p : plan.packed) {
                const void* weight = static_cast<const char*>(key.tensors[p.input].data) + p.offset;
                auto found = p.weights.find(weight);
                if (found == p.weights.end() || !p.is_unchanged(weight, found->second.copy_data)) {
                    found = pack_again(p, weight);
                    complete = false;
                }
                p.packed_data = found->second.packed_data;
            }
            if (complete) return true;
        }
        return false;
    }

    std::unordered_map<const void*, PackedWeight>::iterator pack_again(PackedInput& p, const void* weight) {
        py::object pair = p.refresh(py::handle(key.objects[p.input]));
        PackedWeight made{pair.cast<py::tuple>()[0], pair.cast<py::tuple>()[1]};
        made.copy_data = reinterpret_cast<const void*>(made.copy.attr("data_ptr")().cast<intptr_t>());
        made.packed_data = made.packed.attr("data_ptr")().cast<intptr_t>();
        auto old = p.weights.find(weight);
        if (old != p.weights.end() && old->second.packed_data == made.packed_data && old->second.copy_data == made.copy_data)
            return old;  // the cache packed the weight into the same memory
        made.bytes = p.rows * p.row_bytes + made.packed.attr("nbytes").cast<int64_t>();
        if (count_packed_bytes(table) + made.bytes > kMaxPackedBytes) drop_packed(table);
        if (p.weights.size() >= kMaxPackedWeights) p.weights.clear();
        return p.weights.insert_or_assign(weight, std::move(made)).first;
    }

    void allocate() {
        for (const Output& o : plan.outputs) {
            PyObject* arguments[4] = {o.sizes.ptr(), o.strides.ptr(), o.dtype.ptr(), o.device.ptr()};
            PyObject* made = PyObject_Vectorcall(torch().empty_strided, arguments, 2, torch().empty_names);
            if (made == nullptr) throw py::error_already_set();
            outputs.push_back(py::reinterpret_steal<py::object>(made));
            dlpack::Tensor t;
            if (torch().api->describe(made, &t) != 0) throw py::error_already_set();
            addresses.push_back(reinterpret_cast<intptr_t>(t.data));
        }
        if (plan.scratch_bytes > table.scratch_bytes) {
            std::free(table.scratch);
            table.scratch_bytes = 0;
            // Allocates twice the needed size, because frequent replacement by slightly larger blocks fragments the heap.
            const int64_t bytes = (2 * plan.scratch_bytes + kScratchUnit - 1) / kScratchUnit * kScratchUnit;
            table.scratch = static_cast<char*>(std::aligned_alloc(kAlignment, bytes));
            if (table.scratch == nullptr) throw std::bad_alloc();
            table.scratch_bytes = bytes;
        }
    }

    // Returns false if a native function returned False, because it cannot compute its result as Python does.
    bool call_natives() {
        PyObject* arguments[64];
        for (const NativeCall& call : plan.calls) {
            const size_t n = call.arguments.size();
            std::vector<py::object> filled(n);
            for (size_t k = 0; k < n; ++k) {
                filled[k] = fill(call.arguments[k]);
                arguments[k] = filled[k].ptr();
            }
            PyObject* result = PyObject_Vectorcall(call.function.ptr(), arguments, n, nullptr);
            if (result == nullptr) throw py::error_already_set();
            Py_DECREF(result);
            if (result == Py_False) return false;
        }
        return true;
    }

    py::object result() {
        if (plan.result == 0) return outputs[plan.results[0]];
        const size_t n = plan.results.size();
        PyObject* made = plan.result == 1 ? PyTuple_New(n) : PyList_New(n);
        for (size_t k = 0; k < n; ++k) {
            PyObject* item = plan.results[k] < 0 ? Py_None : outputs[plan.results[k]].ptr();
            Py_INCREF(item);
            plan.result == 1 ? PyTuple_SET_ITEM(made, k, item) : PyList_SET_ITEM(made, k, item);
        }
        return py::reinterpret_steal<py::object>(made);
    }
};

inline PyObject* run_plan(Table& table, const std::shared_ptr<Entry>& entry, const Key& key, bool poison = false) {
    if (table.busy) Py_RETURN_NONE;  // a finalizer called an op while this thread runs a plan
    std::shared_ptr<Plan> plan = entry->plan;
    struct Busy {
        bool& flag;
        explicit Busy(bool& f) : flag(f) { flag = true; }
        ~Busy() { flag = false; }
    } busy(table.busy);
    try {
        Run run{table, *plan, key, {}, {}};
        if (!run.find_packed()) Py_RETURN_NONE;
        run.allocate();
        if (poison) {
            for (size_t k = 0; k < run.outputs.size(); ++k)
                std::memset(reinterpret_cast<void*>(run.addresses[k]), 0xff, run.outputs[k].attr("nbytes").cast<int64_t>());
            std::memset(table.scratch, 0xff, plan->scratch_bytes);
        }
        if (!run.call_natives()) Py_RETURN_NONE;
        if (!poison) ++table.runs;
        return run.result().release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

// Runs a plan that lists calls of functions. Returns None after a RuntimeError: the Python code of the op then raises it again, with
// its own message, or computes the result in another way.
inline PyObject* run_functions(Table& table, const Entry& entry, const Key& key) {
    const std::shared_ptr<FunctionPlan> plan = entry.functions;  // another call of this thread may drop the entry meanwhile
    PyObject* result = run_function_plan(*plan, key);
    if (result != nullptr) ++table.runs;
    if (result != nullptr || !PyErr_ExceptionMatches(PyExc_RuntimeError)) return result;
    PyErr_Clear();
    Py_RETURN_NONE;
}

// find_plan(owner, *args) returns the result of the call if there is a plan for it, True if the caller should record this call,
// else None.
inline PyObject* find_plan(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (n < 2 || torch().api == nullptr || torch().suspended != 0) Py_RETURN_NONE;
    Table* table = get_table();
    if (table == nullptr || table->recording || is_observed()) Py_RETURN_NONE;
    Key key;
    if (!make_key(key, args, n) || (key.tracked && table->recording_gradients)) Py_RETURN_NONE;
    const uint64_t hash = key.hash();
    std::shared_ptr<Entry> entry = find_entry(*table, key, hash);
    if (entry != nullptr) {
        entry->used = ++table->tick;
        if (entry->state == State::ready)
            return entry->functions ? run_functions(*table, *entry, key) : run_plan(*table, entry, key);
        if (entry->state == State::seen) Py_RETURN_TRUE;
        Py_RETURN_NONE;
    }
    if (table->entries.size() >= kMaxPlans) drop_oldest(*table);
    auto made = std::make_shared<Entry>();
    made->key.assign(key.words, key.words + key.length);
    for (int k = 0; k < key.held_count; ++k) made->held.push_back(py::reinterpret_borrow<py::object>(key.held[k]));
    made->used = ++table->tick;
    std::shared_ptr<Entry> replaced = std::exchange(table->entries[hash], made);
    Py_RETURN_NONE;
}

inline std::shared_ptr<Plan> read_plan(const py::dict& description) {
    auto plan = std::make_shared<Plan>();
    for (py::handle call : description["calls"]) {
        const auto pair = call.cast<py::tuple>();
        NativeCall native{pair[0], {}};
        for (py::handle node : pair[1]) native.arguments.push_back(read_argument(node));
        if (native.arguments.size() > 64) return nullptr;
        plan->calls.push_back(std::move(native));
    }
    for (py::handle output : description["outputs"]) {
        const auto t = output.cast<py::tuple>();
        plan->outputs.push_back({t[0], t[1], t[2], t[3]});
    }
    for (py::handle offset : description["temporaries"]) plan->temporaries.push_back(offset.cast<int64_t>());
    plan->workspace_offset = description["temporary_bytes"].cast<int64_t>();
    plan->scratch_bytes = plan->workspace_offset + description["workspace"].cast<int64_t>() + kAlignment;
    for (py::handle packed : description["packed"]) {
        const auto t = packed.cast<py::tuple>();  // (input, offset, rows, row bytes, row step, refresh)
        PackedInput p;
        p.input = t[0].cast<int>();
        p.offset = t[1].cast<int64_t>();
        p.rows = t[2].cast<int64_t>();
        p.row_bytes = t[3].cast<int64_t>();
        p.row_step = t[4].cast<int64_t>();
        p.refresh = t[5];
        plan->packed.push_back(std::move(p));
    }
    plan->result = description["result"].cast<int>();
    for (py::handle index : description["results"]) plan->results.push_back(index.cast<int>());
    return plan;
}

inline void read_description(Entry& entry, const py::dict& description) {
    if (description.contains("functions"))
        entry.functions = read_function_plan(description);
    else
        entry.plan = read_plan(description);
}

// get_state(owner, *args) returns "ready" if find_plan would run a plan, else "refused" or "seen" if the key is stored, else None.
inline py::object get_state(py::args rest) {
    PyObject* const* args = &PyTuple_GET_ITEM(rest.ptr(), 0);
    Table* table = get_table();
    Key key;
    if (rest.size() < 2 || torch().api == nullptr || torch().suspended != 0 || table == nullptr || is_observed() ||
        !make_key(key, args, rest.size()))
        return py::none();
    std::shared_ptr<Entry> entry = find_entry(*table, key, key.hash());
    if (entry == nullptr) return py::none();
    return py::str(entry->state == State::ready ? "ready" : entry->state == State::refused ? "refused" : "seen");
}

inline bool lacks_memory(PyObject* object) {
    PyTypeObject* type = Py_TYPE(object);
    if (type == &PyTuple_Type || type == &PyList_Type) {
        for (Py_ssize_t k = 0; k < PySequence_Fast_GET_SIZE(object); ++k)
            if (lacks_memory(PySequence_Fast_GET_ITEM(object, k))) return true;
        return false;
    }
    if (type != torch().tensor && type != torch().parameter) return false;
    dlpack::Tensor t;
    if (torch().api->describe(object, &t) != 0) {
        PyErr_Clear();
        return false;
    }
    if (t.data != nullptr || t.device.type != dlpack::kCpu) return false;
    for (int k = 0; k < t.ndim; ++k)
        if (t.shape[k] == 0) return false;
    return true;
}

// lack_memory(*args) returns whether one of the arguments is a tensor on the CPU that has elements and no memory.
inline PyObject* lack_memory(PyObject*, PyObject* const* args, Py_ssize_t n) {
    if (torch().api == nullptr) Py_RETURN_NONE;
    for (Py_ssize_t k = 0; k < n; ++k)
        if (lacks_memory(args[k])) Py_RETURN_TRUE;
    Py_RETURN_FALSE;
}

// describe_tensors(arguments) returns the device, dtype, shape, strides and alignment of the tensors in a tuple as bytes, or None if
// one of them cannot be described.
inline PyObject* describe_tensors(PyObject*, PyObject* arguments) {
    if (torch().api == nullptr) Py_RETURN_NONE;
    Key key;
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(arguments); ++k) {
        PyObject* object = PyTuple_GET_ITEM(arguments, k);
        if (Py_TYPE(object) != torch().tensor && Py_TYPE(object) != torch().parameter) continue;
        if (!add_tensor(key, object)) Py_RETURN_NONE;
    }
    if (!key.add(key.device.type) || !key.add(key.device.index)) Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(key.words), sizeof(int64_t) * key.length);
}

// set_plan(description or None, owner, *args) stores the plan of a call, or that the call has none.
inline void set_plan(py::object description, py::args rest) {
    Table* table = get_table();
    Key key;
    PyObject* const* args = &PyTuple_GET_ITEM(rest.ptr(), 0);
    if (table == nullptr || !make_key(key, args, rest.size())) return;
    std::shared_ptr<Entry> entry = find_entry(*table, key, key.hash());
    if (entry == nullptr) return;
    entry->plan = nullptr;
    entry->functions = nullptr;
    if (!description.is_none()) read_description(*entry, description.cast<py::dict>());
    entry->state = entry->plan || entry->functions ? State::ready : State::refused;
}

// Runs a description on other arguments of the same key; outputs and scratch memory are filled with 0xff bytes before. Returns
// None if the plan cannot compute the result of these values.
inline py::object try_plan(py::dict description, py::args rest) {
    Table* table = get_table();
    Key key;
    PyObject* const* args = &PyTuple_GET_ITEM(rest.ptr(), 0);
    if (table == nullptr || !make_key(key, args, rest.size())) return py::none();
    auto entry = std::make_shared<Entry>();
    read_description(*entry, description);
    if (!entry->plan && !entry->functions) return py::none();
    PyObject* result = entry->functions ? run_function_plan(*entry->functions, key) : run_plan(*table, entry, key, true);
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

inline void initialize(py::dict names) {
    Torch& t = torch();
    auto keep = [&](const char* name) { return names[name].cast<py::object>().release().ptr(); };  // never released
    t.tensor = reinterpret_cast<PyTypeObject*>(keep("Tensor"));
    t.parameter = reinterpret_cast<PyTypeObject*>(keep("Parameter"));
    t.dtype = reinterpret_cast<PyTypeObject*>(keep("dtype"));
    t.grad_enabled = keep("grad_enabled");
    t.num_threads = keep("num_threads");
    t.dispatch_modes = keep("dispatch_modes");
    t.function_modes = keep("function_modes");
    t.deterministic = keep("deterministic");
    t.onednn_enabled = keep("onednn_enabled");
    t.functorch = keep("functorch");
    t.any_autocast_enabled = keep("any_autocast_enabled");
    t.autocast_cache_enabled = keep("autocast_cache_enabled");
    t.autocast_enabled = keep("autocast_enabled");
    t.autocast_dtype = keep("autocast_dtype");
    t.cpu = PyUnicode_InternFromString("cpu");
    t.cuda = PyUnicode_InternFromString("cuda");
    t.cublas_tf32 = keep("cublas_tf32");
    t.tracing = keep("tracing");
    t.profiler_module = keep("profiler");
    t.profiler_name = PyUnicode_InternFromString("_is_profiler_enabled");
    t.forward_ad_module = keep("forward_ad");
    t.forward_ad_name = PyUnicode_InternFromString("_current_level");
    t.empty_strided = keep("empty_strided");
    t.empty_names = PyTuple_Pack(2, PyUnicode_InternFromString("dtype"), PyUnicode_InternFromString("device"));
    t.is_neg = keep("is_neg");
    t.requires_grad = PyUnicode_InternFromString("requires_grad");
    t.is_view = keep("is_view");
    t.is_leaf = PyUnicode_InternFromString("is_leaf");
    t.view_as = PyUnicode_InternFromString("view_as");
    t.table_key = PyUnicode_InternFromString("_fastds_call_plans");
    t.api = dlpack::find_table(reinterpret_cast<PyObject*>(t.tensor));
}

inline void register_plans(py::module_& m) {
    static PyMethodDef find{"find_plan", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&find_plan)), METH_FASTCALL,
                            "Run the plan of a call"};
    m.add_object("find_plan", py::reinterpret_steal<py::object>(PyCFunction_New(&find, nullptr)));
    static PyMethodDef lack{"lack_memory", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&lack_memory)), METH_FASTCALL,
                            "Return whether a tensor on the CPU has elements and no memory"};
    m.add_object("lack_memory", py::reinterpret_steal<py::object>(PyCFunction_New(&lack, nullptr)));
    static PyMethodDef describe{"describe_tensors", &describe_tensors, METH_O, "Describe the layouts of tensors"};
    m.add_object("describe_tensors", py::reinterpret_steal<py::object>(PyCFunction_New(&describe, nullptr)));
    m.def("plans_initialize", &initialize);
    m.def("plans_state", &get_state);
    m.def("plans_available", [] { return torch().api != nullptr; });
    m.def("plans_set", &set_plan);
    m.def("plans_try", &try_plan);
    m.def("plans_copy_strided", &copy_strided);
    m.def("plans_cast_strided", &cast_strided);
    m.def("plans_fill_zeros", [](intptr_t to, int64_t bytes) { std::memset(to_pointer(to), 0, bytes); });
    m.def("plans_suspend", [](int change) { torch().suspended += change; });
    m.def("plans_recording", [](bool on) {
        Table* table = get_table();
        const bool before = table != nullptr && table->recording;
        if (table != nullptr) table->recording = on;
        return before;
    });
    m.def("plans_recording_gradients", [](bool on) {
        Table* table = get_table();
        const bool before = table != nullptr && table->recording_gradients;
        if (table != nullptr) table->recording_gradients = on;
        return before;
    });
    m.def("plans_clear", [] {
        if (Table* table = get_table()) {
            auto dropped = std::exchange(table->entries, {});
        }
    });
    m.def("plans_drop_packed", [] {
        if (Table* table = get_table()) drop_packed(*table);
    });
    m.def("plans_statistics", [] {
        Table* table = get_table();
        size_t ready = 0;
        for (auto& [hash, entry] : table->entries) ready += entry->state == State::ready;
        return py::make_tuple(table->entries.size(), ready, table->runs);
    });
}

}  // namespace fastds::plans
