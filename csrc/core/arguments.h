// SPDX-License-Identifier: Apache-2.0
// Helpers of the bind.h files: Python hands over addresses, sizes and numbers, nothing of torch.
//
// pybind11 compiles a tenth of a second for every signature that it reads itself. Of the functions given to `bind` it sees one
// kind only, which takes any arguments; Read<T> turns each of them into the T that the function asks for.
#pragma once
#include <pybind11/pybind11.h>
#include <stdint.h>

#include <array>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/dtype.h"

namespace fastds {

namespace py = pybind11;

inline void* pointer(intptr_t address) { return reinterpret_cast<void*>(address); }

inline DType to_dtype(int code) {
    FASTDS_CHECK(code >= f32 && code <= bf16, "dtype: expected 0 to 3, got " + std::to_string(code));
    return static_cast<DType>(code);
}

// The value of a Python object; what does not fit raises Python's own TypeError or OverflowError. Structs are classes of
// pybind11.
template <class T>
struct Read {
    static const T& from(py::handle object) { return object.cast<const T&>(); }
};

template <class T>
T checked(T value) {
    if (value == T(-1) && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

template <>
struct Read<int64_t> {
    static int64_t from(py::handle object) { return checked<int64_t>(PyLong_AsLongLong(object.ptr())); }
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
    static double from(py::handle object) { return checked(PyFloat_AsDouble(object.ptr())); }
};
template <>
struct Read<float> {
    static float from(py::handle object) { return static_cast<float>(Read<double>::from(object)); }
};
template <>
struct Read<bool> {
    static bool from(py::handle object) { return checked(PyObject_IsTrue(object.ptr())) != 0; }
};

// A list or tuple; of `count` items where that is not negative.
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
// f of positional arguments.
template <class R, class... A, size_t... I>
R unpack(R (*f)(A...), const py::args& given, std::index_sequence<I...>) {
    const Items items(given, sizeof...(A));
    return f(Read<std::decay_t<A>>::from(items[I])...);
}
template <class R, class... A>
R unpack(R (*f)(A...), const py::args& given) {
    return unpack(f, given, std::index_sequence_for<A...>{});
}

// What pybind11 sees of a function: its address and how to call it.
struct Bound {
    using Function = void (*)();
    Function function;
    py::object (*call)(Function, const py::args&);
    py::object operator()(const py::args& given) const { return call(function, given); }
};
inline void define(py::module_& m, const char* name, const Bound& bound, const char* doc) { m.def(name, bound, doc); }

template <class R, class... A>
void bind_function(py::module_& m, const char* name, R (*f)(A...), const char* doc) {
    const auto call = [](Bound::Function function, const py::args& given) -> py::object {
        const auto typed = reinterpret_cast<R (*)(A...)>(function);
        if constexpr (std::is_void_v<R>) {
            unpack(typed, given);
            return py::none();
        } else {
            return py::cast(unpack(typed, given));
        }
    };
    define(m, name, {reinterpret_cast<Bound::Function>(f), call}, doc);
}

// Makes the lambda f, which captures nothing, a function of the module. Its arguments are positional.
template <class F>
void bind(py::module_& m, const char* name, const F& f, const char* doc = "") {
    bind_function(m, name, +f, doc);
}

// The keywords of a constructor; end() refuses those that nobody took.
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
    void end() const {
        if (left_ != 0) throw py::type_error("unknown keyword");
    }

  private:
    const py::kwargs& given_;
    size_t left_;
};

}  // namespace fastds
