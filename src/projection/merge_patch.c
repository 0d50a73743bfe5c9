/*
 * merge_patch.c
 *		JSON merge patch (RFC 7396) on a document in memory.
 *
 * The document is a tree of objects, but only as far as patches have reached
 * into it: what no patch has touched stays as the bytes that it came in, which
 * members point to.  A patch is copied as a whole, once, and its values become
 * members by pointing into the copy.  So a patch costs one copy of its bytes
 * and one look-up for each of its keys, however large the document is; bytes of
 * jsonb are made for a result only.
 *
 * What members no longer point to is garbage.  When patches have brought more
 * bytes than twice those of the document (`limit`) it is written out, and
 * begins anew from that: memory is bounded by the document's size, and each
 * byte of a patch is copied a bounded number of times on average.
 *
 * Members stand in an array in the order in which they came.  Those of a patch
 * are sorted, as jsonb has them, and most patches of a stream look alike: the
 * member behind the last one found is tried first, and only then the index, a
 * hash table, which small objects do without.
 *
 * Bytes of jsonb are read and written here directly.  Their format is that of
 * utils/jsonb.h, and cannot change as long as there is pg_upgrade.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "common/compat.h"
#include "projection/merge_patch.h"

/* members of an object without an index, at most */
#define MAX_UNINDEXED	12

/* bytes of garbage that are not worth looking at */
#define MIN_GARBAGE		4096

/* kinds of values beside the types of a JEntry */
#define VALUE_OBJECT	0x60000000	/* members of its own */
#define VALUE_NONE		0x70000000	/* removed, or not there yet */

typedef struct MergeObject MergeObject;

typedef struct MergeValue
{
	uint32		kind;			/* JENTRY_IS…, or one of the above */
	uint32		size;
	union
	{
		const char *bytes;
		MergeObject *object;
	}			at;
} MergeValue;

typedef struct MergeMember
{
	const char *key;
	uint32		key_size;
	uint32		hash;			/* if there is an index */
	MergeValue	value;
} MergeMember;

struct MergeObject
{
	uint32		count;			/* members, with those removed */
	uint32		removed;
	uint32		room;
	bool		sorted;
	MergeMember *members;
	uint32		mask;			/* size of the index - 1; 0: there is none */
	uint32	   *index;			/* number of the member + 1; 0: free */
};

struct MergeDocument
{
	MemoryContext parent;
	MemoryContext context;
	Size		used;			/* bytes in the context */
	Size		patches;		/* bytes of patches among them */
	Size		limit;			/* when there are more of these the garbage goes */
	MergeValue	root;			/* a container, an object, or none */
};

static void merge_object(MergeDocument *document, MergeObject *object,
						 const JsonbContainer *patch);

/* ----------------------------------------------------------------
 * Objects
 * ----------------------------------------------------------------
 */
static void *
take(MergeDocument *document, Size size)
{
	document->used += size;
	return MemoryContextAllocHuge(document->context, size);
}

static MergeObject *
make_object(MergeDocument *document, uint32 room)
{
	MergeObject *object = take(document, sizeof(MergeObject));

	memset(object, 0, sizeof(MergeObject));
	object->sorted = true;
	object->room = room + 4;
	object->members = take(document, sizeof(MergeMember) * object->room);
	return object;
}

/* jsonb's order of keys */
static inline int
compare_keys(const char *a, uint32 a_size, const char *b, uint32 b_size)
{
	if (a_size != b_size)
		return a_size < b_size ? -1 : 1;
	return memcmp(a, b, a_size);
}

static int
compare_members(const void *a, const void *b)
{
	const MergeMember *one = a;
	const MergeMember *other = b;

	return compare_keys(one->key, one->key_size, other->key, other->key_size);
}

static inline uint32
hash_key(const char *key, uint32 size)
{
	return hash_bytes((const unsigned char *) key, size);
}

static void
index_member(MergeObject *object, uint32 number)
{
	uint32		slot = object->members[number].hash & object->mask;

	while (object->index[slot] != 0)
		slot = (slot + 1) & object->mask;
	object->index[slot] = number + 1;
}

/* Makes the index anew, for `room` members at least. */
static void
make_index(MergeDocument *document, MergeObject *object)
{
	uint32		size = 32;

	while (size / 2 < object->room)
		size *= 2;
	if (object->mask + 1 != size || object->mask == 0)
	{
		bool		is_new = object->mask == 0;

		if (!is_new)
		{
			document->used -= sizeof(uint32) * ((Size) object->mask + 1);
			pfree(object->index);
		}
		object->mask = 0;
		object->index = take(document, sizeof(uint32) * (Size) size);
		if (is_new)
			for (uint32 i = 0; i < object->count; i++)
				object->members[i].hash =
					hash_key(object->members[i].key, object->members[i].key_size);
		object->mask = size - 1;
	}
	memset(object->index, 0, sizeof(uint32) * (Size) size);
	for (uint32 i = 0; i < object->count; i++)
		index_member(object, i);
}

/* Takes the removed members out, and sorts if so wanted. */
static void
tidy(MergeDocument *document, MergeObject *object, bool sort)
{
	if (object->removed > 0)
	{
		uint32		kept = 0;

		for (uint32 i = 0; i < object->count; i++)
			if (object->members[i].value.kind != VALUE_NONE)
				object->members[kept++] = object->members[i];
		object->count = kept;
		object->removed = 0;
	}
	else if (!sort || object->sorted)
		return;
	if (sort && !object->sorted)
	{
		qsort(object->members, object->count, sizeof(MergeMember), compare_members);
		object->sorted = true;
	}
	if (object->mask != 0)
		make_index(document, object);
}

/* The member with this key, removed ones too.  It may be the one at `expected`. */
static inline MergeMember *
find_member(MergeObject *object, const char *key, uint32 size, uint32 expected)
{
	MergeMember *members = object->members;

	if (expected < object->count && members[expected].key_size == size &&
		memcmp(members[expected].key, key, size) == 0)
		return &members[expected];
	if (object->mask != 0)
	{
		uint32		hash = hash_key(key, size);
		uint32		slot = hash & object->mask;

		for (; object->index[slot] != 0; slot = (slot + 1) & object->mask)
		{
			MergeMember *member = &members[object->index[slot] - 1];

			if (member->hash == hash && member->key_size == size &&
				memcmp(member->key, key, size) == 0)
				return member;
		}
		return NULL;
	}
	for (uint32 i = 0; i < object->count; i++)
		if (members[i].key_size == size && memcmp(members[i].key, key, size) == 0)
			return &members[i];
	return NULL;
}

/* Adds a member whose key is not there. */
static MergeMember *
add_member(MergeDocument *document, MergeObject *object, const char *key, uint32 size)
{
	MergeMember *member;

	if (object->count == object->room)
	{
		if (object->removed > object->count / 2)
			tidy(document, object, false);
		else
		{
			document->used += sizeof(MergeMember) * (Size) object->room;
			object->room *= 2;
			object->members = repalloc_huge(object->members,
											sizeof(MergeMember) * (Size) object->room);
			if (object->mask != 0)
				make_index(document, object);
		}
	}
	if (object->sorted && object->count > 0)
	{
		member = &object->members[object->count - 1];
		object->sorted = compare_keys(member->key, member->key_size, key, size) < 0;
	}
	member = &object->members[object->count++];
	member->key = key;
	member->key_size = size;
	member->value.kind = VALUE_NONE;
	if (object->mask != 0)
	{
		member->hash = hash_key(key, size);
		index_member(object, object->count - 1);
	}
	else if (object->count > MAX_UNINDEXED)
		make_index(document, object);
	return member;
}

/* ----------------------------------------------------------------
 * Bytes of jsonb, read
 * ----------------------------------------------------------------
 */

/* goes through the members of an object's bytes */
typedef struct MemberCursor
{
	const JEntry *children;
	const char *base;			/* of keys and values */
	uint32		count;
	uint32		number;			/* of the member, from 0 */
	uint32		key_end;
	uint32		value_end;
	const char *key;
	uint32		key_size;
	MergeValue	value;
} MemberCursor;

static inline void
first_member(MemberCursor *cursor, const JsonbContainer *container)
{
	cursor->count = JsonContainerSize(container);
	cursor->children = container->children;
	cursor->base = (const char *) &container->children[2 * cursor->count];
	cursor->number = -1;
	cursor->key_end = 0;
	cursor->value_end = cursor->count > 0 ? getJsonbOffset(container, cursor->count) : 0;
}

static inline bool
next_member(MemberCursor *cursor)
{
	JEntry		entry;
	uint32		start;

	if (++cursor->number >= cursor->count)
		return false;
	start = cursor->key_end;
	entry = cursor->children[cursor->number];
	JBE_ADVANCE_OFFSET(cursor->key_end, entry);
	cursor->key = cursor->base + start;
	cursor->key_size = cursor->key_end - start;

	start = cursor->value_end;
	entry = cursor->children[cursor->count + cursor->number];
	JBE_ADVANCE_OFFSET(cursor->value_end, entry);
	cursor->value.kind = entry & JENTRY_TYPEMASK;
	if (JBE_ISNUMERIC(entry) || JBE_ISCONTAINER(entry))
		start = INTALIGN(start);
	cursor->value.at.bytes = cursor->base + start;
	cursor->value.size = cursor->value_end - start;
	return true;
}

static inline bool
is_object(const JsonbContainer *container)
{
	return (container->header & JB_FOBJECT) != 0;
}

static inline bool
is_object_value(const MergeValue *value)
{
	return value->kind == JENTRY_ISCONTAINER &&
		is_object((const JsonbContainer *) value->at.bytes);
}

/* Has an object a null, itself or in objects within? */
static bool
has_nulls(const JsonbContainer *container)
{
	MemberCursor cursor;

	check_stack_depth();
	first_member(&cursor, container);
	while (next_member(&cursor))
		if (cursor.value.kind == JENTRY_ISNULL ||
			(is_object_value(&cursor.value) &&
			 has_nulls((const JsonbContainer *) cursor.value.at.bytes)))
			return true;
	return false;
}

/* ----------------------------------------------------------------
 * Merging
 * ----------------------------------------------------------------
 */

/* Gives an object of the document members, if it is bytes so far. */
static MergeObject *
open_object(MergeDocument *document, MergeValue *value)
{
	if (value->kind != VALUE_OBJECT)
	{
		MemberCursor cursor;
		MergeObject *object;

		first_member(&cursor, (const JsonbContainer *) value->at.bytes);
		object = make_object(document, cursor.count);
		while (next_member(&cursor))
			add_member(document, object, cursor.key, cursor.key_size)->value =
				cursor.value;
		value->kind = VALUE_OBJECT;
		value->at.object = object;
	}
	return value->at.object;
}

static void
merge_object(MergeDocument *document, MergeObject *object, const JsonbContainer *patch)
{
	MemberCursor cursor;
	uint32		expected = 0;

	check_stack_depth();
	first_member(&cursor, patch);
	while (next_member(&cursor))
	{
		MergeMember *member = object->count == 0 ? NULL :
			find_member(object, cursor.key, cursor.key_size, expected);
		const JsonbContainer *inner;

		if (cursor.value.kind == JENTRY_ISNULL)
		{
			if (member != NULL && member->value.kind != VALUE_NONE)
			{
				member->value.kind = VALUE_NONE;
				object->removed++;
			}
			continue;
		}
		if (member == NULL)
			member = add_member(document, object, cursor.key, cursor.key_size);
		else if (member->value.kind == VALUE_NONE)
			object->removed--;
		expected = member - object->members + 1;
		if (!is_object_value(&cursor.value))
		{
			member->value = cursor.value;
			continue;
		}

		/* into an object; what is none gives way to an empty one */
		inner = (const JsonbContainer *) cursor.value.at.bytes;
		if (member->value.kind == VALUE_OBJECT || is_object_value(&member->value))
			merge_object(document, open_object(document, &member->value), inner);
		else if (has_nulls(inner))
		{
			MergeObject *into = make_object(document, JsonContainerSize(inner));

			merge_object(document, into, inner);
			member->value.kind = VALUE_OBJECT;
			member->value.at.object = into;
		}
		else
			member->value = cursor.value;
	}
}

/* ----------------------------------------------------------------
 * Bytes of jsonb, written
 * ----------------------------------------------------------------
 */

/* How many bytes an object takes, at most; sorts it for write_object(). */
static Size
measure_object(MergeDocument *document, MergeObject *object)
{
	Size		size;

	check_stack_depth();
	tidy(document, object, true);
	size = sizeof(uint32) + 3 + 2 * sizeof(JEntry) * (Size) object->count;
	for (uint32 i = 0; i < object->count; i++)
	{
		MergeMember *member = &object->members[i];

		size += member->key_size;
		size += member->value.kind == VALUE_OBJECT ?
			measure_object(document, member->value.at.object) : 3 + member->value.size;
	}
	return size;
}

static inline char *
pad(char *to, const char *start)
{
	while ((to - start) % sizeof(uint32) != 0)
		*to++ = '\0';
	return to;
}

/* The entry of a child, of which every so often the end is kept, not the size. */
static inline JEntry
make_entry(uint32 kind, uint32 size, Size end, uint32 number)
{
	if (end > JENTRY_OFFLENMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("total size of jsonb object elements exceeds the maximum of %u bytes",
						JENTRY_OFFLENMASK)));
	if (number % JB_OFFSET_STRIDE == 0)
		return kind | (uint32) end | JENTRY_HAS_OFF;
	return kind | size;
}

/* Writes an object to a place that is aligned as `start` is; returns its end. */
static char *
write_object(const MergeObject *object, char *to, const char *start)
{
	JsonbContainer *container = (JsonbContainer *) to;
	uint32		count = object->count;
	char	   *base = to + offsetof(JsonbContainer, children) + 2 * sizeof(JEntry) * (Size) count;

	if (count > JB_CMASK)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("number of jsonb object pairs exceeds the maximum allowed (%u)",
						JB_CMASK)));
	container->header = count | JB_FOBJECT;
	to = base;
	for (uint32 i = 0; i < count; i++)
	{
		const MergeMember *member = &object->members[i];

		memcpy(to, member->key, member->key_size);
		to += member->key_size;
		container->children[i] = make_entry(JENTRY_ISSTRING, member->key_size,
											to - base, i);
	}
	for (uint32 i = 0; i < count; i++)
	{
		const MergeValue *value = &object->members[i].value;
		uint32		kind = value->kind;
		char	   *before = to;

		if (kind == VALUE_OBJECT)
		{
			to = write_object(value->at.object, pad(to, start), start);
			kind = JENTRY_ISCONTAINER;
		}
		else
		{
			if (kind == JENTRY_ISNUMERIC || kind == JENTRY_ISCONTAINER)
				to = pad(to, start);
			memcpy(to, value->at.bytes, value->size);
			to += value->size;
		}
		container->children[count + i] = make_entry(kind, to - before, to - base,
													count + i);
	}
	return to;
}

Jsonb *
merge_result(MergeDocument *document)
{
	MergeValue *root = &document->root;
	Jsonb	   *result;

	if (root->kind == VALUE_NONE)
		return NULL;
	if (root->kind == VALUE_OBJECT)
	{
		Size		size = VARHDRSZ + measure_object(document, root->at.object);
		char	   *end;

		if (!AllocSizeIsValid(size))
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("total size of jsonb object elements exceeds the maximum of %u bytes",
							JENTRY_OFFLENMASK)));
		result = palloc(size);
		end = write_object(root->at.object, (char *) &result->root, (char *) result);
		SET_VARSIZE(result, end - (char *) result);
	}
	else
	{
		result = palloc(VARHDRSZ + root->size);
		memcpy(&result->root, root->at.bytes, root->size);
		SET_VARSIZE(result, VARHDRSZ + root->size);
	}
	return result;
}

/* ----------------------------------------------------------------
 * Documents
 * ----------------------------------------------------------------
 */
static void
new_context(MergeDocument *document)
{
	document->context = AllocSetContextCreate(document->parent, "merged document",
											  ALLOCSET_START_SMALL_SIZES);
	document->used = 0;
	document->patches = 0;
}

MergeDocument *
merge_begin(MemoryContext context)
{
	MergeDocument *document = MemoryContextAlloc(context, sizeof(MergeDocument));

	document->parent = context;
	new_context(document);
	document->limit = MIN_GARBAGE;
	document->root.kind = VALUE_NONE;
	return document;
}

void
merge_end(MergeDocument *document)
{
	MemoryContextDelete(document->context);
	pfree(document);
}

void
merge_load(MergeDocument *document, const JsonbContainer *container, Size size)
{
	char	   *copy;

	/* nothing of before is wanted */
	if (document->used > 0)
		MemoryContextReset(document->context);
	document->used = 0;
	document->patches = 0;
	document->root.kind = VALUE_NONE;
	copy = take(document, size);
	memcpy(copy, container, size);
	document->root.kind = JENTRY_ISCONTAINER;
	document->root.size = size;
	document->root.at.bytes = copy;
	document->limit = MIN_GARBAGE + 2 * size;
}

/* Writes the document out, and begins anew with that. */
static void
drop_garbage(MergeDocument *document)
{
	MemoryContext before = document->context;
	MemoryContext caller;
	Jsonb	   *written;

	new_context(document);
	caller = MemoryContextSwitchTo(document->context);
	written = merge_result(document);
	MemoryContextSwitchTo(caller);
	document->root.kind = JENTRY_ISCONTAINER;
	document->root.size = VARSIZE(written) - VARHDRSZ;
	document->root.at.bytes = (const char *) &written->root;
	document->used = VARSIZE(written);
	document->limit = MIN_GARBAGE + 2 * document->used;
	MemoryContextDelete(before);
}

void
merge_apply(MergeDocument *document, const JsonbContainer *patch, Size size)
{
	bool		is_first = document->root.kind == VALUE_NONE;
	char	   *copy;

	if (!is_object(patch))
	{
		merge_load(document, patch, size);
		return;
	}
	if (document->root.kind != VALUE_OBJECT && !is_object_value(&document->root))
	{
		document->root.kind = VALUE_OBJECT;
		document->root.at.object = make_object(document, JsonContainerSize(patch));
	}
	copy = take(document, size);
	memcpy(copy, patch, size);
	merge_object(document, open_object(document, &document->root),
				 (const JsonbContainer *) copy);
	if (is_first)
		document->limit = MIN_GARBAGE + 2 * size;
	document->patches += size;
	if (document->patches > document->limit)
		drop_garbage(document);
}

Size
merge_memory(const MergeDocument *document)
{
	return sizeof(MergeDocument) + document->used;
}
