// What can be verified of a program without its graphs.
#pragma once

namespace arc {

struct Program;

// Throws unless every position is committed, every size is told, every loop has its table.
void check(const Program& p);

}  // namespace arc
