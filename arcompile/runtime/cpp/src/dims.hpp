// Symbolic sizes: polynomials such as 2*b or past+s, in one canonical form; and tensor types.
#pragma once

#include <arcompile/arcompile.hpp>
#include <map>
#include <string>
#include <vector>

namespace arc {

using Sizes = std::map<std::string, std::int64_t>;

class Dim {
 public:
  Dim() = default;
  Dim(std::int64_t constant);
  static Dim parse(const std::string& text);
  bool constant() const;
  bool symbol() const;  // one bare name
  std::string name() const { return terms_.begin()->first.front(); }
  std::vector<std::string> symbols() const;
  std::int64_t value(const Sizes& sizes) const;
  std::string str() const;
  bool operator==(const Dim& other) const { return terms_ == other.terms_; }

 private:
  std::map<std::vector<std::string>, std::int64_t> terms_;  // symbols of a monomial -> coefficient
};

struct Type {
  DType dtype = DType::f32;
  std::vector<Dim> shape;

  static Type parse(const std::string& text);
  Shape shape_of(const Sizes& sizes) const;
  bool symbolic() const;
  std::string str() const;
  bool operator==(const Type& o) const { return dtype == o.dtype && shape == o.shape; }
};

std::size_t size_of(DType dtype);
const char* name_of(DType dtype);
// Elements of a shape; throws where it is negative or no memory could hold it.
std::size_t count(const Shape& shape);

// Read the symbols' sizes off an actual shape; throws where they disagree with `sizes`.
void measure(const std::string& name, const Type& type, const Shape& got, Sizes& sizes);

}  // namespace arc
