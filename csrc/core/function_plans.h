// SPDX-License-Identifier: Apache-2.0
// Plans of calls with gradients, and of calls that torch computes: the calls of autograd functions and of functions of torch that
// the Python code of an op made, with their arguments.
#pragma once
#include <Python.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <vector>

#include "core/plan_key.h"

namespace fastds::plans {

enum class Kind { constant, input, output, temporary, packed, workspace, sequence };

// An argument of a native function: a constant, an address to be filled in, or a tuple or list of arguments.
struct Argument {
    Kind kind = Kind::constant;
    int index = 0;
    int64_t offset = 0;  // bytes
    py::object constant;
    std::vector<Argument> items;
    bool variable = false;  // contains a slot
};

// Returns a list or a tuple of run.fill(item) for all items.
template <class Run>
py::object make_sequence(const std::vector<Argument>& items, bool list, const Run& run) {
    const size_t n = items.size();
    py::object made = py::reinterpret_steal<py::object>(list ? PyList_New(n) : PyTuple_New(n));
    if (!made) throw py::error_already_set();
    for (size_t k = 0; k < n; ++k) {
        PyObject* item = run.fill(items[k]).release().ptr();
        list ? PyList_SET_ITEM(made.ptr(), k, item) : PyTuple_SET_ITEM(made.ptr(), k, item);
    }
    return made;
}

// A call apply(run, *arguments) of an autograd function, or apply(*arguments) of another function, where `run` is null. An argument
// of kind `output` is result number `offset` of call `index`. An argument of kind `input` with offset 1 is a view of the tensor.
struct FunctionCall {
    py::object apply, run;
    std::vector<Argument> arguments;
};

struct FunctionPlan {
    std::vector<FunctionCall> calls;
    std::vector<Argument> results;
    int result = 0;  // 0: one tensor; 1: a tuple; 2: a list
};

struct FunctionRun {
    const Key& key;
    std::vector<std::vector<py::object>> outputs;

    py::object fill(const Argument& a) const {
        switch (a.kind) {
            case Kind::input: {
                PyObject* tensor = key.objects[a.index];
                if (a.offset == 0) return py::reinterpret_borrow<py::object>(tensor);
                PyObject* view = PyObject_CallMethodOneArg(tensor, torch().view_as, tensor);
                if (view == nullptr) throw py::error_already_set();
                return py::reinterpret_steal<py::object>(view);
            }
            case Kind::output: return outputs[a.index][a.offset];
            case Kind::sequence:
                return a.variable ? make_sequence(a.items, PyList_CheckExact(a.constant.ptr()), *this) : a.constant;
            default: return a.constant;
        }
    }

    void call(const FunctionCall& function) {
        const size_t n = function.arguments.size();
        std::vector<py::object> filled(n);
        std::vector<PyObject*> arguments;
        if (function.run) arguments.push_back(function.run.ptr());
        for (size_t k = 0; k < n; ++k) {
            filled[k] = fill(function.arguments[k]);
            arguments.push_back(filled[k].ptr());
        }
        PyObject* result = PyObject_Vectorcall(function.apply.ptr(), arguments.data(), arguments.size(), nullptr);
        if (result == nullptr) throw py::error_already_set();
        auto made = py::reinterpret_steal<py::object>(result);
        std::vector<py::object> values;
        if (PyTuple_CheckExact(result))
            for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(result); ++k)
                values.push_back(py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(result, k)));
        else
            values.push_back(made);
        outputs.push_back(std::move(values));
    }
};

// Returns the result of the call, or null with a Python error set.
inline PyObject* run_function_plan(const FunctionPlan& plan, const Key& key) {
    try {
        FunctionRun run{key, {}};
        for (const FunctionCall& call : plan.calls) run.call(call);
        py::object result = plan.result == 0 ? run.fill(plan.results[0]) : make_sequence(plan.results, plan.result == 2, run);
        return result.release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

inline Argument read_argument(py::handle node) {
    // The node is one of
    // ("constant", value) | ("input" | "output" | "temporary" | "packed", index, offset) | ("workspace", 0, offset)
    // | ("sequence", value, [items])
    const auto tuple = node.cast<py::tuple>();
    const auto kind = tuple[0].cast<std::string>();
    Argument a;
    if (kind == "constant") {
        a.constant = tuple[1];
        return a;
    }
    a.variable = true;
    if (kind == "sequence") {
        a.kind = Kind::sequence;
        a.constant = tuple[1];
        a.variable = false;
        for (py::handle item : tuple[2]) {
            a.items.push_back(read_argument(item));
            a.variable |= a.items.back().variable;
        }
        return a;
    }
    a.kind = kind == "input" ? Kind::input : kind == "output" ? Kind::output : kind == "temporary" ? Kind::temporary
             : kind == "packed" ? Kind::packed : Kind::workspace;
    a.index = tuple[1].cast<int>();
    a.offset = tuple[2].cast<int64_t>();
    return a;
}

inline std::shared_ptr<FunctionPlan> read_function_plan(const py::dict& description) {
    auto plan = std::make_shared<FunctionPlan>();
    for (py::handle call : description["functions"]) {
        const auto parts = call.cast<py::tuple>();  // (apply, run, [arguments])
        FunctionCall function{parts[0], parts[1].is_none() ? py::object() : py::object(parts[1]), {}};
        for (py::handle node : parts[2]) function.arguments.push_back(read_argument(node));
        plan->calls.push_back(std::move(function));
    }
    for (py::handle node : description["results"]) plan->results.push_back(read_argument(node));
    plan->result = description["result"].cast<int>();
    return plan;
}

}  // namespace fastds::plans
