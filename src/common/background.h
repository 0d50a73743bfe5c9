/*
 * background.h
 *		Background processes of the extension.
 */
#ifndef EVENT_STORE_BACKGROUND_H
#define EVENT_STORE_BACKGROUND_H

#include "postmaster/bgworker.h"

extern void background_describe(BackgroundWorker *worker, const char *function,
								const char *name);
extern bool background_start(const char *function, const char *name,
							 const void *order, Size size,
							 BackgroundWorkerHandle **handle);

#endif
