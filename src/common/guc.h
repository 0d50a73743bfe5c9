/*
 * guc.h
 *		What an operator tunes.
 */
#ifndef EVENT_STORE_GUC_H
#define EVENT_STORE_GUC_H

extern int	guc_max_batch_events;
extern int	guc_max_batch_size;		/* kB */
extern bool guc_segment_worker;

extern void guc_init(void);

#endif
