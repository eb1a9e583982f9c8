// Stands in for Boost.Any where Boost is not installed.
#pragma once
#include <any>

namespace boost {
using std::any;
using std::any_cast;
using bad_any_cast = std::bad_any_cast;
}  // namespace boost
