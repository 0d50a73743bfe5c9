/*
 * builtin_fold.c
 *		The folds that need no code of the user's: merge_patch, count, sum, min,
 *		max, last.
 *
 * Each keeps its state as what it computes with (a counter, the parts of a sum,
 * a value, a tree), and makes jsonb of it for a result only.  An event's data
 * is looked into where it lies; it is copied if it is compressed or stored out
 * of line, once, or if it is so short that it lies unaligned.
 *
 * Sums.  A number whose digits lie within 16 before and 16 behind the point is
 * added as two integers, of 10^-16 each for what is behind it, which is exact;
 * others by PostgreSQL's numeric, into a total of their own.  The integers go
 * to that total before they could overflow.  The result has as many digits
 * behind the point as the number that had the most, as sum(numeric) has it.
 * Digits of numeric are read here directly: their format on disk cannot change
 * as long as there is pg_upgrade.
 */
#include "postgres.h"

#include <limits.h>

#include "access/detoast.h"
#include "catalog/pg_collation_d.h"
#include "catalog/pg_type_d.h"
#include "common/int.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/varlena.h"

#include "common/catalog.h"
#include "common/compat.h"
#include "common/errors.h"
#include "projection/builtin_fold.h"
#include "projection/merge_patch.h"

/* ----------------------------------------------------------------
 * Values in data
 * ----------------------------------------------------------------
 */
const Jsonb *
fold_payload(Fold *fold, Datum datum, void **to_free)
{
	struct varlena *value = (struct varlena *) DatumGetPointer(datum);

	*to_free = NULL;
	if (likely(VARATT_IS_4B_U(value)))
		return (const Jsonb *) value;
	/* a pointer to what is stored out of line passes for short, too */
	if (VARATT_IS_SHORT(value) && !VARATT_IS_EXTERNAL(value))
	{
		Jsonb	   *copy = (Jsonb *) fold->buffer.bytes;
		Size		size = VARSIZE_SHORT(value) - VARHDRSZ_SHORT;

		memcpy(VARDATA(copy), VARDATA_SHORT(value), size);
		SET_VARSIZE(copy, size + VARHDRSZ);
		return copy;
	}
	*to_free = detoast_attr(value);
	return *to_free;
}

/* What stands at the path; false: nothing.  Nothing is copied. */
static bool
look_up(const FoldPath *path, const Jsonb *data, JsonbValue *value)
{
	JsonbContainer *container = unconstify(JsonbContainer *, &data->root);

	if (path->count == 0)
	{
		if (JsonbExtractScalar(container, value))
			return true;
		value->type = jbvBinary;
		value->val.binary.data = container;
		value->val.binary.len = VARSIZE(data) - VARHDRSZ;
		return true;
	}
	for (int i = 0;; i++)
	{
		if (JsonContainerIsObject(container))
		{
			if (getKeyJsonValueFromContainer(container, path->fields[i],
											 path->sizes[i], value) == NULL)
				return false;
		}
		else if (JsonContainerIsArray(container) && !JsonContainerIsScalar(container))
		{
			uint32		count = JsonContainerSize(container);
			char	   *end;
			long		number;
			JsonbValue *element;

			errno = 0;
			number = strtol(path->fields[i], &end, 10);
			if (end == path->fields[i] || *end != '\0' || errno != 0)
				return false;
			if (number < 0)
				number += count;
			if (number < 0 || number >= count)
				return false;
			element = getIthJsonbValueFromContainer(container, number);
			if (element == NULL)
				return false;
			*value = *element;
			pfree(element);
		}
		else
			return false;
		if (i + 1 == path->count)
			return true;
		if (value->type != jbvBinary)
			return false;
		container = value->val.binary.data;
	}
}

/* The value at the path of an event's data, if there is one other than null. */
static inline bool
look_up_value(Fold *fold, const Datum *values, const bool *nulls, JsonbValue *value,
			  void **to_free)
{
	*to_free = NULL;
	return !nulls[RE_DATA] &&
		look_up(&fold->path, fold_payload(fold, values[RE_DATA], to_free), value) &&
		value->type != jbvNull;
}

static inline void
free_payload(void *to_free)
{
	if (unlikely(to_free != NULL))
		pfree(to_free);
}

static const char *
type_name(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			return "null";
		case jbvString:
			return "a string";
		case jbvNumeric:
			return "a number";
		case jbvBool:
			return "a boolean";
		case jbvBinary:
			return JsonContainerIsObject(value->val.binary.data) ? "an object" : "an array";
		default:
			return "something else";
	}
}

/* The number that a state is, or an error. */
static Numeric
number_of_state(Fold *fold, const Jsonb *state)
{
	JsonbValue	value;

	look_up(&(FoldPath){0}, state, &value);
	if (value.type != jbvNumeric)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("the state of fold \"%s\" is a number, not %s", fold->name,
						type_name(&value))));
	return value.val.numeric;
}

static Jsonb *
number_to_jsonb(Numeric number)
{
	JsonbValue	value;

	value.type = jbvNumeric;
	value.val.numeric = number;
	return JsonbValueToJsonb(&value);
}

/* ----------------------------------------------------------------
 * Numbers
 * ----------------------------------------------------------------
 */

/* numeric's format on disk */
#define NUMERIC_SIGN(header)		((header) & 0xC000)
#define NUMERIC_IS_NEGATIVE			0x4000
#define NUMERIC_IS_SHORT			0x8000
#define NUMERIC_IS_NO_NUMBER		0xC000
#define NUMERIC_LONG_SCALE			0x3FFF
#define NUMERIC_SHORT_NEGATIVE		0x2000
#define NUMERIC_SHORT_SCALE(header) (((header) & 0x1F80) >> 7)
#define NUMERIC_SHORT_WEIGHT(header) \
	((int) ((header) & 0x003F) - ((header) & 0x0040 ? 0x0040 : 0))

#define NUMERIC_BASE		10000
#define PART_DIGITS			4	/* of that base, in each part */
#define PART_SCALE			(4 * PART_DIGITS)

/* a number as two integers: what is before the point, and 10^-16 behind it */
typedef struct SmallNumber
{
	int64		whole;
	int64		fraction;
	int			scale;			/* digits behind the point that are shown */
} SmallNumber;

static inline bool
small_number(Numeric numeric, SmallNumber *number)
{
	const char *bytes = VARDATA(numeric);
	uint16		header;
	const int16 *digits;
	int			count;
	int			weight;
	bool		negative;
	int64		part = 0;
	int			i;

	if (unlikely(!VARATT_IS_4B_U(numeric)))
		return false;
	header = *(const uint16 *) bytes;
	count = VARSIZE(numeric) - VARHDRSZ;
	if (likely((NUMERIC_SIGN(header)) == NUMERIC_IS_SHORT))
	{
		negative = (header & NUMERIC_SHORT_NEGATIVE) != 0;
		number->scale = NUMERIC_SHORT_SCALE(header);
		weight = NUMERIC_SHORT_WEIGHT(header);
		digits = (const int16 *) (bytes + sizeof(uint16));
		count = (count - sizeof(uint16)) / sizeof(int16);
	}
	else if (NUMERIC_SIGN(header) == NUMERIC_IS_NO_NUMBER)
		return false;
	else
	{
		negative = NUMERIC_SIGN(header) == NUMERIC_IS_NEGATIVE;
		number->scale = header & NUMERIC_LONG_SCALE;
		weight = ((const int16 *) bytes)[1];
		digits = (const int16 *) (bytes + 2 * sizeof(uint16));
		count = (count - 2 * sizeof(uint16)) / sizeof(int16);
	}
	if (number->scale > PART_SCALE || weight >= PART_DIGITS)
		return false;

	for (i = 0; i <= weight; i++)
		part = part * NUMERIC_BASE + (i < count ? digits[i] : 0);
	number->whole = negative ? -part : part;
	part = 0;
	if (count > weight + 1)
	{
		i = weight + 1;
		for (int place = 0; place < PART_DIGITS; place++, i++)
			part = part * NUMERIC_BASE + (i >= 0 && i < count ? digits[i] : 0);
	}
	number->fraction = negative ? -part : part;
	return true;
}

/* a + b, and b is freed */
static Numeric
add_number(Numeric a, Numeric b)
{
	Numeric		sum = DatumGetNumeric(DirectFunctionCall2(numeric_add, NumericGetDatum(a),
														  NumericGetDatum(b)));

	pfree(b);
	return sum;
}

/* ----------------------------------------------------------------
 * sum
 * ----------------------------------------------------------------
 */

/* a part may grow by one more number below this */
#define MAX_PART	(PG_INT64_MAX - INT64CONST(10000000000000000))

typedef struct SumState
{
	FoldState	base;
	MemoryContext context;
	bool		has_value;
	SmallNumber small;			/* the sum of small numbers since … */
	Numeric		total;			/* … they were added to this; may be NULL */
} SumState;

/* The small numbers' sum, with as many digits behind the point as they had. */
static Numeric
small_sum(const SmallNumber *sum)
{
	int64		unit = 1;		/* of what is shown, in 10^-16 */
	int64		units = 1;		/* in one */
	int64		value;
	Numeric		exact;
	Numeric		fraction;

	for (int i = 0; i < PART_SCALE; i++)
		if (i < sum->scale)
			units *= 10;
		else
			unit *= 10;

	/* no digit is lost in either way: behind the scale there are none */
	if (!pg_mul_s64_overflow(sum->whole, units, &value) &&
		!pg_add_s64_overflow(value, sum->fraction / unit, &value))
		return int64_div_fast_to_numeric(value, sum->scale);
	exact = int64_div_fast_to_numeric(sum->fraction, PART_SCALE);
	fraction = DatumGetNumeric(DirectFunctionCall2(numeric_round, NumericGetDatum(exact),
												   Int32GetDatum(sum->scale)));
	pfree(exact);
	return add_number(int64_to_numeric(sum->whole), fraction);
}

/* The sum so far. */
static Numeric
sum_total(SumState *sum)
{
	Numeric		total = small_sum(&sum->small);

	return sum->total == NULL ? total : add_number(sum->total, total);
}

/* Takes a number as the total: a copy of it. */
static void
sum_set_total(SumState *sum, Numeric total)
{
	Numeric		copy = MemoryContextAlloc(sum->context, VARSIZE_ANY(total));

	memcpy(copy, total, VARSIZE_ANY(total));
	if (sum->total != NULL)
		pfree(sum->total);
	sum->total = copy;
}

static void
sum_add(SumState *sum, Numeric value)
{
	SmallNumber number;

	sum->has_value = true;
	if (likely(small_number(value, &number)))
	{
		sum->small.whole += number.whole;
		sum->small.fraction += number.fraction;
		if (number.scale > sum->small.scale)
			sum->small.scale = number.scale;
		if (unlikely(sum->small.whole > MAX_PART || sum->small.whole < -MAX_PART ||
					 sum->small.fraction > MAX_PART || sum->small.fraction < -MAX_PART))
		{
			Numeric		total = sum_total(sum);

			sum_set_total(sum, total);
			sum->small.whole = sum->small.fraction = 0;
			pfree(total);
		}
	}
	else if (sum->total == NULL)
		sum_set_total(sum, value);
	else
	{
		Numeric		total = DatumGetNumeric(DirectFunctionCall2(numeric_add,
																NumericGetDatum(sum->total),
																NumericGetDatum(value)));

		sum_set_total(sum, total);
		pfree(total);
	}
}

static FoldState *
sum_begin(Fold *fold, const Jsonb *state, MemoryContext context)
{
	SumState   *sum = MemoryContextAllocZero(context, sizeof(SumState));

	sum->context = context;
	if (state != NULL)
		sum_add(sum, number_of_state(fold, state));
	return &sum->base;
}

static void
refuse_value(Fold *fold, const JsonbValue *value, const Datum *values, const bool *nulls)
{
	if (nulls[RE_STREAM] || nulls[RE_VERSION])
		ereport(ERROR,
				(errcode(ERRCODE_VE_NOT_A_NUMBER),
				 errmsg("fold \"%s\": the value is %s, not a number", fold->name,
						type_name(value))));
	ereport(ERROR,
			(errcode(ERRCODE_VE_NOT_A_NUMBER),
			 errmsg("fold \"%s\": the value in event %d of stream \"%s\" is %s, not a number",
					fold->name, DatumGetInt32(values[RE_VERSION]),
					TextDatumGetCString(values[RE_STREAM]), type_name(value))));
}

static void
sum_step(FoldState *state, const Datum *values, const bool *nulls)
{
	JsonbValue	value;
	void	   *to_free;

	if (look_up_value(state->fold, values, nulls, &value, &to_free))
	{
		if (unlikely(value.type != jbvNumeric))
			refuse_value(state->fold, &value, values, nulls);
		sum_add((SumState *) state, value.val.numeric);
	}
	free_payload(to_free);
}

static Jsonb *
sum_result(FoldState *state)
{
	SumState   *sum = (SumState *) state;

	return sum->has_value ? number_to_jsonb(sum_total(sum)) : NULL;
}

static Size
sum_memory(FoldState *state)
{
	SumState   *sum = (SumState *) state;

	return sizeof(SumState) + (sum->total == NULL ? 0 : VARSIZE(sum->total));
}

static void
sum_end(FoldState *state)
{
	SumState   *sum = (SumState *) state;

	if (sum->total != NULL)
		pfree(sum->total);
	pfree(sum);
}

static const FoldMethod sum_method = {
	sum_begin, sum_step, sum_result, sum_memory, sum_end
};

/* ----------------------------------------------------------------
 * count
 * ----------------------------------------------------------------
 */
typedef struct CountState
{
	FoldState	base;
	int64		count;
} CountState;

static FoldState *
count_begin(Fold *fold, const Jsonb *state, MemoryContext context)
{
	CountState *count = MemoryContextAllocZero(context, sizeof(CountState));

	if (state != NULL)
	{
		SmallNumber number;

		if (!small_number(number_of_state(fold, state), &number) ||
			number.fraction != 0 || number.whole < 0)
			ereport(ERROR,
					(errcode(ERRCODE_VE_INVALID_ARGUMENT),
					 errmsg("the state of fold \"%s\" is not a number of events",
							fold->name)));
		count->count = number.whole;
	}
	return &count->base;
}

static void
count_step(FoldState *state, const Datum *values, const bool *nulls)
{
	JsonbValue	value;
	void	   *to_free = NULL;

	if (!state->fold->has_path ||
		look_up_value(state->fold, values, nulls, &value, &to_free))
		((CountState *) state)->count++;
	free_payload(to_free);
}

static Jsonb *
count_result(FoldState *state)
{
	return number_to_jsonb(int64_to_numeric(((CountState *) state)->count));
}

static Size
count_memory(FoldState *state)
{
	return sizeof(CountState);
}

static void
count_end(FoldState *state)
{
	pfree(state);
}

static const FoldMethod count_method = {
	count_begin, count_step, count_result, count_memory, count_end
};

/* ----------------------------------------------------------------
 * min, max, last: one of the values
 * ----------------------------------------------------------------
 */
typedef struct ValueState
{
	FoldState	base;
	MemoryContext context;
	bool		has_value;
	bool		is_small;		/* a number, and small */
	JsonbValue	value;			/* points into bytes */
	SmallNumber number;
	char	   *bytes;
	Size		room;
} ValueState;

/* Copies a value; the memory is used again for the next one. */
static void
keep_value(ValueState *state, const JsonbValue *value)
{
	const void *from = NULL;
	Size		size = 0;

	switch (value->type)
	{
		case jbvNumeric:
			from = value->val.numeric;
			size = VARSIZE_ANY(value->val.numeric);
			break;
		case jbvString:
			from = value->val.string.val;
			size = value->val.string.len;
			break;
		case jbvBinary:
			from = value->val.binary.data;
			size = value->val.binary.len;
			break;
		default:
			break;
	}
	if (size > state->room)
	{
		Size		room = Max(32, size + size / 4);

		if (state->bytes != NULL)
			pfree(state->bytes);
		state->bytes = NULL;
		state->room = 0;
		state->bytes = MemoryContextAlloc(state->context, room);
		state->room = room;
	}
	state->has_value = true;
	state->value = *value;
	if (size > 0)
		memcpy(state->bytes, from, size);
	switch (value->type)
	{
		case jbvNumeric:
			state->value.val.numeric = (Numeric) state->bytes;
			break;
		case jbvString:
			state->value.val.string.val = state->bytes;
			break;
		case jbvBinary:
			state->value.val.binary.data = (JsonbContainer *) state->bytes;
			break;
		default:
			break;
	}
}

static FoldState *
value_begin(Fold *fold, const Jsonb *state, MemoryContext context)
{
	ValueState *own = MemoryContextAllocZero(context, sizeof(ValueState));

	own->context = context;
	if (state != NULL)
	{
		JsonbValue	value;

		look_up(&(FoldPath){0}, state, &value);
		keep_value(own, &value);
		own->is_small = value.type == jbvNumeric &&
			small_number(value.val.numeric, &own->number);
	}
	return &own->base;
}

static void
last_step(FoldState *state, const Datum *values, const bool *nulls)
{
	JsonbValue	value;
	void	   *to_free;

	if (look_up_value(state->fold, values, nulls, &value, &to_free))
		keep_value((ValueState *) state, &value);
	free_payload(to_free);
}

/* In the order of jsonb. */
static int
compare_values(JsonbValue *a, JsonbValue *b)
{
	Jsonb	   *one;
	Jsonb	   *other;
	int			result;

	if (a->type == jbvNumeric && b->type == jbvNumeric)
		return DatumGetInt32(DirectFunctionCall2(numeric_cmp,
												 NumericGetDatum(a->val.numeric),
												 NumericGetDatum(b->val.numeric)));
	if (a->type == jbvString && b->type == jbvString)
		return varstr_cmp(a->val.string.val, a->val.string.len,
						  b->val.string.val, b->val.string.len, DEFAULT_COLLATION_OID);
	if (a->type == jbvBinary && b->type == jbvBinary)
		return compareJsonbContainers(a->val.binary.data, b->val.binary.data);
	one = JsonbValueToJsonb(a);
	other = JsonbValueToJsonb(b);
	result = compareJsonbContainers(&one->root, &other->root);
	pfree(one);
	pfree(other);
	return result;
}

static void
extreme_step(FoldState *state, const Datum *values, const bool *nulls)
{
	ValueState *own = (ValueState *) state;
	JsonbValue	value;
	void	   *to_free;

	if (look_up_value(state->fold, values, nulls, &value, &to_free))
	{
		SmallNumber number;
		bool		is_small = value.type == jbvNumeric &&
			small_number(value.val.numeric, &number);
		int			order;

		if (!own->has_value)
			order = 1;
		else if (is_small && own->is_small)
			order = number.whole != own->number.whole ?
				(number.whole > own->number.whole ? 1 : -1) :
				(number.fraction > own->number.fraction) -
				(number.fraction < own->number.fraction);
		else
			order = compare_values(&value, &own->value);
		if (!own->has_value || order * state->fold->sign > 0)
		{
			keep_value(own, &value);
			own->is_small = is_small;
			if (is_small)
				own->number = number;
		}
	}
	free_payload(to_free);
}

static Jsonb *
value_result(FoldState *state)
{
	ValueState *own = (ValueState *) state;

	return own->has_value ? JsonbValueToJsonb(&own->value) : NULL;
}

static Size
value_memory(FoldState *state)
{
	return sizeof(ValueState) + ((ValueState *) state)->room;
}

static void
value_end(FoldState *state)
{
	ValueState *own = (ValueState *) state;

	if (own->bytes != NULL)
		pfree(own->bytes);
	pfree(own);
}

static const FoldMethod last_method = {
	value_begin, last_step, value_result, value_memory, value_end
};

static const FoldMethod extreme_method = {
	value_begin, extreme_step, value_result, value_memory, value_end
};

/* ----------------------------------------------------------------
 * merge_patch
 * ----------------------------------------------------------------
 */
typedef struct MergeState
{
	FoldState	base;
	MergeDocument *document;
} MergeState;

static FoldState *
merge_patch_begin(Fold *fold, const Jsonb *state, MemoryContext context)
{
	MergeState *merge = MemoryContextAllocZero(context, sizeof(MergeState));

	merge->document = merge_begin(context);
	if (state != NULL)
		merge_load(merge->document, &state->root, VARSIZE(state) - VARHDRSZ);
	return &merge->base;
}

static void
merge_patch_step(FoldState *state, const Datum *values, const bool *nulls)
{
	MergeDocument *document = ((MergeState *) state)->document;
	Fold	   *fold = state->fold;
	const Jsonb *data;
	void	   *to_free;
	JsonbValue	value;

	if (nulls[RE_DATA])
		return;
	data = fold_payload(fold, values[RE_DATA], &to_free);
	if (fold->path.count == 0)
		merge_apply(document, &data->root, VARSIZE(data) - VARHDRSZ);
	else if (look_up(&fold->path, data, &value))
	{
		if (value.type == jbvBinary)
			merge_apply(document, value.val.binary.data, value.val.binary.len);
		else
		{
			Jsonb	   *scalar = JsonbValueToJsonb(&value);

			merge_apply(document, &scalar->root, VARSIZE(scalar) - VARHDRSZ);
			pfree(scalar);
		}
	}
	free_payload(to_free);
}

static Jsonb *
merge_patch_result(FoldState *state)
{
	return merge_result(((MergeState *) state)->document);
}

static Size
merge_patch_memory(FoldState *state)
{
	return sizeof(MergeState) + merge_memory(((MergeState *) state)->document);
}

static void
merge_patch_end(FoldState *state)
{
	merge_end(((MergeState *) state)->document);
	pfree(state);
}

static const FoldMethod merge_patch_method = {
	merge_patch_begin, merge_patch_step, merge_patch_result, merge_patch_memory,
	merge_patch_end
};

/* ----------------------------------------------------------------
 * Handlers
 * ----------------------------------------------------------------
 */
typedef struct Builtin
{
	const char *name;
	const FoldMethod *method;
	bool		needs_path;
	int			sign;
} Builtin;

static const Builtin builtins[] = {
	{"merge_patch", &merge_patch_method, false, 0},
	{"count", &count_method, false, 0},
	{"sum", &sum_method, true, 0},
	{"min", &extreme_method, true, -1},
	{"max", &extreme_method, true, 1},
	{"last", &last_method, true, 0},
};

#define BLANKS	" \t\r\n\f\v"

static void
refuse_path(const char *handler, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_VE_INVALID_ARGUMENT),
			 errmsg("invalid path in fold \"%s\"", handler),
			 errdetail_internal("%s", detail),
			 errhint("Write names of fields with dots between them, as in amount or order.amount, or a text array, as in {order,\"a.b\"}.")));
}

/* A text array literal as an array. */
static ArrayType *
read_array(char *literal)
{
	MemoryContext context = CurrentMemoryContext;
	ArrayType  *volatile array = NULL;

	PG_TRY();
	{
		array = DatumGetArrayTypeP(OidInputFunctionCall(F_ARRAY_IN, literal, TEXTOID, -1));
	}
	PG_CATCH();
	{
		fold_refuse_text(context);
	}
	PG_END_TRY();
	return array;
}

static void
read_path(FoldPath *path, char *written, const char *handler)
{
	if (*written == '{')
	{
		ArrayType  *array = read_array(written);
		Datum	   *fields;
		bool	   *nulls;

		if (ARR_NDIM(array) > 1)
			refuse_path(handler, "The array has several dimensions.");
		deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &fields, &nulls,
						  &path->count);
		path->fields = palloc(sizeof(char *) * (path->count + 1));
		path->sizes = palloc(sizeof(int) * (path->count + 1));
		for (int i = 0; i < path->count; i++)
		{
			if (nulls[i])
				refuse_path(handler, "A field is NULL.");
			path->fields[i] = TextDatumGetCString(fields[i]);
			path->sizes[i] = strlen(path->fields[i]);
		}
		return;
	}
	if (strpbrk(written, ",(){}\"\\") != NULL)
		refuse_path(handler, "Without braces a field has none of , ( ) { } \" \\ in its name.");
	path->fields = palloc(sizeof(char *) * (strlen(written) + 1));
	path->sizes = palloc(sizeof(int) * (strlen(written) + 1));
	for (;;)
	{
		Size		size = strcspn(written, ".");

		if (size == 0)
			refuse_path(handler, "A field has no name.");
		path->fields[path->count] = pnstrdup(written, size);
		path->sizes[path->count++] = size;
		if (written[size] == '\0')
			break;
		written += size + 1;
	}
}

/* The path as it is written: with dots, if that means the same. */
static char *
path_text(const FoldPath *path)
{
	StringInfoData written;
	bool		plain = path->count > 0;
	Datum	   *fields = palloc(sizeof(Datum) * (path->count + 1));

	initStringInfo(&written);
	for (int i = 0; i < path->count; i++)
	{
		const char *field = path->fields[i];

		plain = plain && *field != '\0' && strpbrk(field, ".,(){}\"\\" BLANKS) == NULL;
		fields[i] = CStringGetTextDatum(field);
		appendStringInfo(&written, "%s%s", i > 0 ? "." : "", field);
	}
	if (plain)
		return written.data;
	return OidOutputFunctionCall(F_ARRAY_OUT,
								 PointerGetDatum(construct_array(fields, path->count, TEXTOID,
																 -1, false, TYPALIGN_INT)));
}

/*
 * Is the text the handler of a built-in fold?  One with a comma in plain
 * parentheses is a function's arguments.
 */
bool
builtin_fold_open(Fold *fold, const char *handler)
{
	const char *name = handler + strspn(handler, BLANKS);
	Size		name_size = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_");
	const char *rest = name + name_size + strspn(name + name_size, BLANKS);
	Size		rest_size = strlen(rest);
	const Builtin *builtin = NULL;

	for (int i = 0; i < lengthof(builtins) && builtin == NULL; i++)
		if (strlen(builtins[i].name) == name_size &&
			pg_strncasecmp(builtins[i].name, name, name_size) == 0)
			builtin = &builtins[i];
	if (builtin == NULL)
		return false;
	while (rest_size > 0 && strchr(BLANKS, rest[rest_size - 1]) != NULL)
		rest_size--;
	if (rest_size > 0)
	{
		char	   *path;
		Size		size;

		if (rest[0] != '(' || rest[rest_size - 1] != ')')
			return false;
		path = pnstrdup(rest + 1, rest_size - 2);
		path += strspn(path, BLANKS);
		size = strlen(path);
		while (size > 0 && strchr(BLANKS, path[size - 1]) != NULL)
			size--;
		path[size] = '\0';
		if (*path != '{' && strchr(path, ',') != NULL && strstr(path, "recorded_event") != NULL)
			return false;
		read_path(&fold->path, path, handler);
		fold->has_path = true;
		fold->name = psprintf("%s(%s)", builtin->name, path_text(&fold->path));
	}
	else if (builtin->needs_path)
		ereport(ERROR,
				(errcode(ERRCODE_VE_INVALID_ARGUMENT),
				 errmsg("fold \"%s\" wants a path", handler),
				 errhint("Write %s(amount) for the value of field \"amount\" in data. A function of yours that is named %s is meant by its schema and name.",
						 builtin->name, builtin->name)));
	else
		fold->name = builtin->name;
	fold->method = builtin->method;
	fold->sign = builtin->sign;
	return true;
}

bool
builtin_fold_checks(const Fold *fold)
{
	return fold->method == &sum_method;
}

bool
builtin_fold_reads_data(const Fold *fold)
{
	return fold->method != &count_method || fold->has_path;
}
