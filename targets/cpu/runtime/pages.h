// Mapping the pages of weights before they are read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moec {

// Gives the next session its time for mapping; beyond it pages are mapped as they are read.
void begin_mapping();

// Maps the pages that hold these bytes, as far as there is time and the system can.
void map_pages(const void* data, size_t bytes);

}  // namespace moec
