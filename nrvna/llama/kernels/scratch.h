#pragma once

#include <stddef.h>

/* Memory of this thread's own, aligned to 64 bytes, until it asks again. */
void * scratch(size_t size);
