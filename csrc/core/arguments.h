// SPDX-License-Identifier: Apache-2.0
// Conversion of Python arguments for the bind.h files. Python passes addresses, sizes and numbers; no torch object is passed.
//
// Functions registered by `bind` have the same type for pybind11, which takes any positional arguments. Read<T> converts each
// argument to the parameter type T of the bound function. This saves compile time: pybind11 needs about 0.1 s for each
// signature that it converts itself.
#pragma once
#include <pybind11/pybind11.h>
#include <stdint.h>

#include <array>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/common.h"
#include "core/dtype.h"

namespace fastds {

namespace py = pybind11;

inline void* to_pointer(intptr_t address) { return reinterpret_cast<void*>(address); }

inline DType to_dtype(int code) {
    FASTDS_CHECK(code >= f32 && code <= bf16, "dtype: expected 0 to 3, got " + std::to_string(code));
    return static_cast<DType>(code);
}

// Converts a Python object to T. A value of the wrong type or range raises a Python exception. The primary template is for
// structs, which are registered with pybind11 as classes.
template <class T>
struct Read {
    static const T& from(py::handle object) { return object.cast<const T&>(); }
};

template <class T>
T throw_if_failed(T value) {
    if (value == T(-1) && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

template <>
struct Read<int64_t> {
    static int64_t from(py::handle object) { return throw_if_failed<int64_t>(PyLong_AsLongLong(object.ptr())); }
};
template <>
struct Read<int> {
    static int from(py::handle object) {
        const int64_t value = Read<int64_t>::from(object);
        FASTDS_CHECK(value == static_cast<int>(value), "expected 32 bits, got " + std::to_string(value));
        return static_cast<int>(value);
    }
};
template <>
struct Read<double> {
    static double from(py::handle object) { return throw_if_failed(PyFloat_AsDouble(object.ptr())); }
};
template <>
struct Read<float> {
    static float from(py::handle object) { return static_cast<float>(Read<double>::from(object)); }
};
template <>
struct Read<bool> {
    static bool from(py::handle object) { return throw_if_failed(PyObject_IsTrue(object.ptr())) != 0; }
};

// View of a Python list or tuple. If `count` is not negative, the constructor checks the number of items.
class Items {
  public:
    explicit Items(py::handle object, int64_t count = -1)
        : list_(py::reinterpret_steal<py::object>(PySequence_Fast(object.ptr(), "expected a list or tuple"))) {
        if (!list_) throw py::error_already_set();
        FASTDS_CHECK(count < 0 || size() == count,
                     "expected " + std::to_string(count) + " items, got " + std::to_string(size()));
    }
    int64_t size() const { return PySequence_Fast_GET_SIZE(list_.ptr()); }
    py::handle operator[](int64_t i) const { return PySequence_Fast_GET_ITEM(list_.ptr(), i); }

  private:
    py::object list_;
};

template <class T>
struct Read<std::vector<T>> {
    static std::vector<T> from(py::handle object) {
        const Items items(object);
        std::vector<T> values(items.size());
        for (int64_t i = 0; i < items.size(); i++) values[i] = Read<T>::from(items[i]);
        return values;
    }
};
template <class T, size_t N>
struct Read<std::array<T, N>> {
    static std::array<T, N> from(py::handle object) {
        const Items items(object, N);
        std::array<T, N> values;
        for (size_t i = 0; i < N; i++) values[i] = Read<T>::from(items[i]);
        return values;
    }
};
template <class... T>
struct Read<std::tuple<T...>> {
    template <size_t... I>
    static std::tuple<T...> from(const Items& items, std::index_sequence<I...>) {
        return {Read<T>::from(items[I])...};
    }
    static std::tuple<T...> from(py::handle object) {
        return from(Items(object, sizeof...(T)), std::index_sequence_for<T...>{});
    }
};
// Calls f with the positional arguments `given`, after converting each to the type of its parameter.
template <class R, class... A, size_t... I>
R unpack(R (*f)(A...), const py::args& given, std::index_sequence<I...>) {
    const Items items(given, sizeof...(A));
    return f(Read<std::decay_t<A>>::from(items[I])...);
}
template <class R, class... A>
R unpack(R (*f)(A...), const py::args& given) {
    return unpack(f, given, std::index_sequence_for<A...>{});
}

// The one callable type that pybind11 registers: the address of a function and a wrapper that calls it.
struct BoundFunction {
    using Function = void (*)();
    Function function;
    py::object (*call)(Function, const py::args&);
    py::object operator()(const py::args& given) const { return call(function, given); }
};
inline void define(py::module_& m, const char* name, const BoundFunction& bound, const char* doc) { m.def(name, bound, doc); }

template <class R, class... A>
void bind_function(py::module_& m, const char* name, R (*f)(A...), const char* doc) {
    const auto call = [](BoundFunction::Function function, const py::args& given) -> py::object {
        const auto typed = reinterpret_cast<R (*)(A...)>(function);
        if constexpr (std::is_void_v<R>) {
            unpack(typed, given);
            return py::none();
        } else {
            return py::cast(unpack(typed, given));
        }
    };
    define(m, name, {reinterpret_cast<BoundFunction::Function>(f), call}, doc);
}

// Registers the captureless lambda f as a function of the module. Its arguments are positional only.
template <class F>
void bind(py::module_& m, const char* name, const F& f, const char* doc = "") {
    bind_function(m, name, +f, doc);
}

// Keyword arguments of a constructor. check_unused() throws if a keyword was never read by take().
class Keywords {
  public:
    explicit Keywords(const py::kwargs& given) : given_(given), left_(given.size()) {}

    template <class T>
    T take(const char* name) {
        PyObject* value = PyDict_GetItemString(given_.ptr(), name);
        if (value == nullptr) throw py::type_error(std::string("missing keyword: ") + name);
        left_--;
        return Read<T>::from(value);
    }
    void check_unused() const {
        if (left_ != 0) throw py::type_error("unknown keyword");
    }

  private:
    const py::kwargs& given_;
    size_t left_;
};

}  // namespace fastds
