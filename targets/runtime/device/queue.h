// Streams, copies and allocators as onnxruntime sees them.
#pragma once

#include "device.h"
#include "ep_abi.h"
#include "memory.h"

namespace moec {

// Null for success, else an error that says what failed.
OrtStatus* said(device::Result result, const char* what);

// A session's stream: its kernels and copies run in the order they were asked for.
struct Queue {
  device::Stream stream;
  bool capturing;  // into a graph, so nothing may wait for it
  Queue* next;
};

OrtStatus* open(Queue& queue);
void close(Queue& queue);

// For onnxruntime to order copies and kernels by. A stream without a queue is destroyed with what is made here.
OrtStatus* make_stream(device::Stream stream, Queue* queue, OrtSyncStreamImpl** made);

// Null where a copy may be part of a graph, else why not: the target's, in its runs.cc.
OrtStatus* expect_recordable(bool from_host, bool to_host);

// Copies one tensor in a stream's order.
OrtStatus* copy_in(device::Stream stream, const OrtValue* from, OrtValue* to);

OrtStatus* make_transfer(OrtDataTransferImpl** made);

// An allocator over a pool, which it holds.
OrtStatus* make_allocator(Pool* pool, const OrtMemoryInfo* info, OrtAllocator** made);
void release_allocator(OrtAllocator* allocator);

}  // namespace moec
