// Peer: sends one EVALSHA for each request, with net/http, encoding/json and redigo's connection pool.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	bodyBytesMax = 16 << 10
	idleMax      = 512
	timeout      = 2 * time.Second
)

type asked struct {
	Code string `json:"code"`
	User string `json:"user"`
}

type redeemed struct {
	ID         string `json:"id"`
	Status     string `json:"status"`
	Campaign   string `json:"campaign"`
	Code       string `json:"code"`
	User       string `json:"user"`
	Amount     int64  `json:"amount"`
	Currency   string `json:"currency"`
	RedeemedAt string `json:"redeemed_at"`
	Replayed   bool   `json:"replayed"`
}

type problem struct {
	Status int    `json:"status"`
	Code   string `json:"code"`
}

type peer struct {
	authorization, campaign, sha string
	pool                         *redis.Pool
}

func (p *peer) redeem(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != p.authorization {
		refuse(w, http.StatusUnauthorized, "unauthenticated")
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyBytesMax))
	var want asked
	if err == nil {
		err = json.Unmarshal(body, &want)
	}
	if err != nil || len(want.Code) < 4 || want.User == "" {
		refuse(w, http.StatusBadRequest, "malformed_request")
		return
	}
	last4 := want.Code[len(want.Code)-4:]
	words, err := p.call(want.Code, last4, want.User)
	if err != nil || len(words) == 0 {
		log.Print(err)
		refuse(w, http.StatusServiceUnavailable, "store_unavailable")
		return
	}
	if words[0] != "redeemed" {
		refuse(w, http.StatusConflict, words[0])
		return
	}
	milliseconds, _ := strconv.ParseInt(words[1][:strings.IndexByte(words[1], '-')], 10, 64)
	amount, _ := strconv.ParseInt(words[2], 10, 64)
	answer(w, http.StatusOK, "application/json", redeemed{
		ID:         words[1],
		Status:     "redeemed",
		Campaign:   p.campaign,
		Code:       "••••-••••-••••-" + last4,
		User:       want.User,
		Amount:     amount,
		Currency:   words[3],
		RedeemedAt: time.UnixMilli(milliseconds).UTC().Format("2006-01-02T15:04:05.000Z"),
	})
}

func (p *peer) call(code, last4, user string) ([]string, error) {
	connection := p.pool.Get()
	defer connection.Close()
	return redis.Strings(connection.Do(
		"EVALSHA", p.sha, 3, "peer:campaign", "peer:codes", "peer:events", code, last4, user,
	))
}

func refuse(w http.ResponseWriter, status int, code string) {
	answer(w, status, "application/problem+json", problem{Status: status, Code: code})
}

func answer(w http.ResponseWriter, status int, contentType string, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func main() {
	socket := os.Getenv("PEER_REDIS_SOCKET")
	p := &peer{
		authorization: "Bearer " + os.Getenv("PEER_KEY"),
		campaign:      os.Getenv("PEER_CAMPAIGN"),
		sha:           os.Getenv("PEER_SHA"),
		pool: &redis.Pool{
			MaxIdle: idleMax,
			Dial: func() (redis.Conn, error) {
				return redis.Dial(
					"unix", socket, redis.DialReadTimeout(timeout), redis.DialWriteTimeout(timeout),
				)
			},
		},
	}
	routes := http.NewServeMux()
	routes.HandleFunc("/v1/redemptions", p.redeem)
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PEER_PORT"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("ready http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, routes))
}
