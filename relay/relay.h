/*
 * relay.h
 *		What the relay, and what it knows of brokers, share.
 */
#ifndef EVENT_STORE_RELAY_H
#define EVENT_STORE_RELAY_H

#include <stdbool.h>
#include <stdint.h>

typedef enum MessageState
{
	MESSAGE_WAITING,			/* not sent yet */
	MESSAGE_SENT,				/* the broker has not confirmed it */
	MESSAGE_CONFIRMED,
	MESSAGE_FAILED				/* the broker, or we, refuse it; see error */
} MessageState;

typedef struct Header
{
	char	   *name;
	char	   *value;
} Header;

typedef struct Message
{
	const char *id;				/* in the outbox */
	const char *message_id;
	const char *topic;
	const char *key;			/* NULL for none */
	const char *type;
	const char *payload;
	int			payload_size;
	int64_t		published_at;	/* milliseconds since 1970 */
	Header	   *headers;
	int			nheaders;
	MessageState state;
	char		error[256];
} Message;

/* What comes of an attempt to speak to a broker. */
typedef enum BrokerResult
{
	BROKER_OK,
	BROKER_LOST,				/* the connection, and it may be had again */
	BROKER_REFUSED				/* the same, but because of what was sent */
} BrokerResult;

typedef struct Broker
{
	const char *name;

	/* whether the options are good; if not, says why by relay_log() */
	bool		(*check) (void);

	/* connects; on failure says why by relay_log() */
	bool		(*connect) (void);

	/* whether something can be sent without waiting */
	bool		(*ready) (void);

	/* sends one; a message that cannot be sent fails, and the connection stays */
	BrokerResult (*send) (Message *message);

	/* waits so long for confirmations, and marks messages; 0: looks only */
	BrokerResult (*wait) (int milliseconds);

	/* ends the connection, whatever state it is in */
	void		(*disconnect) (void);
} Broker;

typedef struct Options
{
	const char *dbname;
	const char *relay;
	const char *broker;			/* the URL */
	const char *exchange;
	const char *route;			/* template of the routing key, or the topic */
	const char *ca_file;
	const char *cert_file;
	const char *key_file;
	const char *metrics_file;
	int			metrics_interval;
	int			batch;
	int			lease;
	int			wait;
	int			timeout;
	bool		insecure;
	bool		declare;
	bool		mandatory;
	bool		pipeline_keys;
	bool		once;
	bool		verbose;
	const char *properties[64]; /* name=value, for the client library */
	int			nproperties;
} Options;

extern Options options;

/* event_store_relay.c */
extern void relay_log(const char *format,...) __attribute__((format(printf, 1, 2)));
extern void *relay_alloc(size_t size) __attribute__((noinline));
extern void message_confirmed(Message *message);
extern void message_failed(Message *message, const char *format,...) __attribute__((format(printf, 2, 3)));
extern void broker_blocked(const char *why);
extern void broker_refused(const char *why);
extern void guard_socket(int socket);
extern void unguard_socket(void);
extern char *message_route(const Message *message);

/* headers.c */
extern bool headers_parse(Message *message, const char *json);
extern void headers_free(Message *message);

/* rabbitmq.c, kafka.c */
extern const Broker rabbitmq;
extern const Broker kafka;

#endif
